"""The whole check of a first GPU, ten minutes each:

    python -m benchmarks.gpu learner [--device cuda] [--quick]
    python -m benchmarks.gpu service [--model DIR] [--device cuda] [--quick]

Each is made of parts, which are written to benchmarks/results/gpu-<which>-<device>.json as soon as
they are measured; a run that was cut short continues with the parts that are missing (`--again`
measures all). A part that fails is written with its error, and the others follow. Ceilings (copying
and multiplying matrices) are measured in the same run, so that every figure stands beside what this
GPU can do. With `--device cpu --quick` it runs anywhere, in a few minutes, on small models.
"""

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.loop import RESULTS, device_name

console = Console()
Part = Callable[[], Mapping[str, Any]]
REPEATS = 7


def seconds_of(work: Callable[[], Any], device: str, repeats: int = REPEATS) -> float:
    """Return the median seconds of some work, after two runs to warm up."""
    import torch

    taken = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[2:])


def ceilings(device: str, *, quick: bool) -> dict[str, Any]:
    """Return what the device can copy and multiply, in bytes/s and FLOPs/s."""
    import torch

    on_gpu = device.startswith("cuda")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    size, width = (1 << 24, 512) if quick else (1 << 30, 8192)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left = torch.randn(width, width, device=device).to(dtype)
    found: dict[str, Any] = {
        # Each byte is read and written.
        "copy_bytes_per_second": 2 * size / seconds_of(lambda: target.copy_(source), device),
        "matmul_flops_per_second": 2 * width**3 / seconds_of(lambda: left @ left, device),
        "matmul_dtype": str(dtype),
    }
    if on_gpu:
        host = torch.zeros(size, dtype=torch.uint8).pin_memory()
        found["pinned_to_gpu_bytes_per_second"] = size / seconds_of(
            lambda: target.copy_(host, non_blocking=True), device
        )
    return found


def run_parts(parts: Mapping[str, Part], path: Path, head: Mapping[str, Any]) -> dict[str, Any]:
    """Measure the parts that `path` does not have yet; what fails is told, and tried next time."""
    done: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else dict(head)
    measured = done.setdefault("parts", {})
    for name, part in parts.items():
        if name in measured and "error" not in measured[name]:
            console.print(f"{name}: measured before")
            continue
        started = time.perf_counter()
        try:
            found = dict(part())
        except Exception as error:
            found = {
                "error": f"{type(error).__name__}: {error}",
                "traceback": traceback.format_exc(),
            }
        found["part_seconds"] = round(time.perf_counter() - started, 1)
        measured[name] = found
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(done, indent=2) + "\n")
        shown = {key: value for key, value in found.items() if key != "traceback"}
        console.print(f"{name}: {shown}")
    return done


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a script; the exit status is 1 if a part failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("which", choices=["learner", "service"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--model", default="smollm2-135m-instruct", help="of service")
    parser.add_argument("--quick", action="store_true", help="tiny models and few repetitions")
    parser.add_argument("--again", action="store_true", help="measure all parts again")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    options = parser.parse_args(arguments)
    from benchmarks import gpu_learner, gpu_service

    if options.which == "learner":
        own = gpu_learner.parts(options.device, quick=options.quick)
    else:
        own = gpu_service.parts(options.model, options.device, quick=options.quick)
    quick = "-quick" if options.quick else ""
    path = options.results / f"gpu-{options.which}-{device_name()}{quick}.json"
    if options.again:
        path.unlink(missing_ok=True)
    head = {
        "device": device_name(),
        "torch": torch_version(),
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    parts = {"ceilings": lambda: ceilings(options.device, quick=options.quick), **own}
    done = run_parts(parts, path, head)
    console.print(f"written to {path}")
    return int(any("error" in part for part in done["parts"].values()))


def torch_version() -> str:
    """Return the version of torch, with its build."""
    import torch

    return str(torch.__version__)


if __name__ == "__main__":
    sys.exit(main())
