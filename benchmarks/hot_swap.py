"""What users see of a swap: gaps between pieces of text around 50 swaps, and with no swap.

    python -m benchmarks.hot_swap [--model smollm2-135m-instruct] [--only lora|full] [--quick]

The real generation service under the load of eight streams, over its gRPC stream: gaps are those a
client sees. The service joins tokens of up to 250 ms under load (at eight streams on two cores,
100 ms), so that a gap holds a few tokens. Slices with swaps and without take turns within one run
of that load. Versions are small random changes of the model, stored and signed as the learner's,
and made to serve by the routing table:

* LoRA: every swap brings an adapter that was never loaded before;
* full weights: four versions in turn, more than the cache keeps, so that each is fetched, verified
  and loaded. The stall is set against copying the same bytes from the page cache into tensors that
  exist, with all cores and nothing else running.

Intervals are 95 %, by the bootstrap over the rounds (for swaps: over the swaps). Writes
hot-swap-<device>.json and .md into benchmarks/results/.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.gateway import machine
from benchmarks.hot_swap_measure import Plan, measure
from benchmarks.hot_swap_service import CACHED_FULL_VERSIONS, service
from benchmarks.hot_swap_table import table
from benchmarks.intervals import Estimate, median
from benchmarks.loop import RESULTS, device_name
from tuneloop.generation.vllm.environment import prepare_environment
from tuneloop.models.resolve import resolve
from tuneloop.policies import WeightsKind

console = Console()

FULL_VERSIONS = CACHED_FULL_VERSIONS + 2
COPIES = 7
PLANS = {
    WeightsKind.LORA: Plan(rounds=5, swaps=10, every_seconds=2.0, still_seconds=8.0),
    WeightsKind.FULL: Plan(rounds=5, swaps=10, every_seconds=3.0, still_seconds=6.0),
}
QUICK = Plan(rounds=2, swaps=3, every_seconds=2.0, still_seconds=6.0)


def copy_seconds(folder: Path) -> Estimate:
    """Copying every tensor of the files in `folder` into one that exists."""
    import torch
    from safetensors import safe_open

    torch.set_num_threads(os.cpu_count() or 1)
    targets: dict[str, torch.Tensor] = {}
    seconds = []
    for _ in range(COPIES + 1):
        started = time.perf_counter()
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                    tensor = tensors.get_tensor(name)
                    targets.setdefault(name, torch.empty_like(tensor)).copy_(tensor)
        seconds.append(time.perf_counter() - started)
    # The first one also brought the files into the page cache.
    return median(seconds[1:])


def bytes_of(folder: Path) -> int:
    """Size of the weights in `folder`."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def against_copy(row: dict[str, Any], model: Path) -> dict[str, Any]:
    """The stall of full weights beside what a mere copy of them takes."""
    copy = copy_seconds(model)
    return {
        "bytes": bytes_of(model),
        "copy_seconds": copy,
        "pause_over_copy": row["pause_seconds"]["value"] / copy["value"],
        "client_stall_over_copy": row["client_stall_seconds"]["value"] / copy["value"],
    }


def main() -> int:
    """Run everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--engine", default="vllm", choices=("vllm", "transformers"))
    parser.add_argument("--only", choices=[kind.value for kind in WeightsKind])
    parser.add_argument("--quick", action="store_true", help="few swaps, for a look")
    parser.add_argument("--remark", default="", help="what else the machine did meanwhile")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    arguments = parser.parse_args()
    # Leave nothing running behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    prepare_environment(threads=0)
    cache_dir = Path(os.environ.get("TUNELOOP_CACHE_DIR", Path.home() / ".cache" / "tuneloop"))
    model = resolve(arguments.model, cache_dir)
    plans = {kind: QUICK if arguments.quick else plan for kind, plan in PLANS.items()}
    if arguments.only:
        plans = {WeightsKind(arguments.only): plans[WeightsKind(arguments.only)]}
    result: dict[str, Any] = {
        "machine": machine(),
        "measured_time": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": model.name,
        "engine": arguments.engine,
        "remark": arguments.remark,
    }
    for kind, plan in plans.items():
        fresh = plan.rounds * plan.swaps + 1
        count = fresh if kind is WeightsKind.LORA else FULL_VERSIONS
        with service(model, kind, engine=arguments.engine, versions=count) as running:
            result[kind.value] = asyncio.run(measure(running, plan, console.print))
        console.print(f"{kind.value}: measured")
        if kind is WeightsKind.FULL:
            result["full"] |= against_copy(result["full"], model)
    arguments.results.mkdir(exist_ok=True, parents=True)
    path = arguments.results / f"hot-swap-{device_name()}.json"
    with contextlib.suppress(FileNotFoundError):
        # One half measured anew stands beside the other one of before.
        if arguments.only:
            result = json.loads(path.read_text()) | result
    path.write_text(json.dumps(result, indent=2) + "\n")
    path.with_suffix(".md").write_text(table(result))
    console.print(table(result))
    console.print(f"written to {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
