"""Parts of `python -m benchmarks.gpu service`: the whole service, as users start it."""

import asyncio
import contextlib
import functools
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.hot_swap import FULL_VERSIONS, against_copy
from benchmarks.hot_swap_measure import Plan, measure
from benchmarks.hot_swap_service import service as generation_alone
from benchmarks.load import load
from benchmarks.loop import console, feedback_to_serving, free_port, settle
from tuneloop.gpus.devices import find_gpus
from tuneloop.models.resolve import resolve
from tuneloop.policies import WeightsKind
from tuneloop.supervisor.child import ServiceChild

SWAPS = Plan(rounds=2, swaps=5, every_seconds=2.0, still_seconds=5.0)
QUICK = Plan(rounds=2, swaps=2, every_seconds=1.0, still_seconds=4.0, streams=2)
"""Few streams and short answers: the engine of transformers samples one completion at a time, ten
tokens a second on two cores."""


def parts(model: str, device: str, *, quick: bool) -> dict[str, Any]:
    """Return the parts by name; each starts what it needs and ends it."""
    cache = Path(os.environ.get("TUNELOOP_CACHE_DIR", Path.home() / ".cache" / "tuneloop"))
    folder = resolve(model, cache)
    engine = "transformers" if quick else "auto"
    found: dict[str, Any] = {
        "the loop": functools.partial(loop_part, folder, device, engine, quick=quick),
    }
    for kind in WeightsKind:
        swap = functools.partial(swap_part, folder, kind, engine, quick=quick)
        found[f"swaps, {kind.value}"] = swap
    return found


@contextlib.contextmanager
def running(model: Path, device: str, engine: str) -> Iterator[ServiceChild]:
    """Run `tuneloop up` with data of its own."""
    with tempfile.TemporaryDirectory() as folder:
        # What is timed are thumbs: rewards' steps would go on after them.
        environment = {"TUNELOOP_LEARNER_RELEASE": "off", "TUNELOOP_LEARNER_POLICY_GRADIENT": "off"}
        if device == "cpu":
            environment |= {"TUNELOOP_LEARNER_DEVICE": "cpu"}
        arguments = ["--model", str(model), "--engine", engine]
        child = ServiceChild(
            Path(folder) / "data", port=free_port(), arguments=arguments, environment=environment
        )
        with child:
            yield child


def loop_part(model: Path, device: str, engine: str, *, quick: bool) -> Mapping[str, Any]:
    """Start, answer, learn, and start generation again beside a learner that holds its memory."""
    begun = time.perf_counter()
    with running(model, device, engine) as service:
        service.wait_until_ready(900)
        found: dict[str, Any] = {"ready_seconds": time.perf_counter() - begun}
        settle(service)
        found["memory_used_bytes"] = [gpu.used for gpu in find_gpus()]
        found["throughput"] = [
            throughput(service, streams, 16 if quick else 256)
            for streams in ((2,) if quick else (8, 64, 256))
        ]
        settle(service)
        rounds, max_tokens = (1, 8) if quick else (4, 64)
        waited = asyncio.run(feedback_to_serving(service.url, rounds=rounds, max_tokens=max_tokens))
        found["thumbs_to_serving_seconds"] = waited
        found["memory_used_after_learning_bytes"] = [gpu.used for gpu in find_gpus()]
        found["generation_again_seconds"] = start_generation_again(service)
    return found


def throughput(service: ServiceChild, streams: int, max_tokens: int) -> Mapping[str, Any]:
    """Measure tokens/s at a number of streams."""
    for requests in (streams, 2 * streams):
        done = asyncio.run(
            load(service.url, streams=streams, requests=requests, max_tokens=max_tokens)
        )
    return {
        "streams": streams,
        "tokens_per_second": done.tokens_per_second,
        "first_token_seconds_p50": done.first_token_seconds_p50,
        "failed": done.failed,
    }


def start_generation_again(service: ServiceChild) -> float:
    """Kill generation; return the seconds until it answers again, beside the learner."""
    before = service.run_state()["processes"]["generation"]["pid"]
    os.kill(before, signal.SIGKILL)
    begun = time.perf_counter()
    while time.perf_counter() - begun < 600:
        state = service.run_state()["processes"]["generation"]
        if state["ready"] and state["pid"] != before:
            return time.perf_counter() - begun
        time.sleep(0.2)
    raise TimeoutError("generation did not come back within ten minutes")


def swap_part(model: Path, kind: WeightsKind, engine: str, *, quick: bool) -> Mapping[str, Any]:
    """Measure the gaps that users see around swaps; for full weights beside a plain copy."""
    plan = QUICK if quick else SWAPS
    count = plan.rounds * plan.swaps + 1 if kind is WeightsKind.LORA else FULL_VERSIONS
    with generation_alone(model, kind, engine=engine, versions=count) as alone:
        row = asyncio.run(measure(alone, plan, console.print))
    if kind is WeightsKind.FULL:
        row |= against_copy(row, model)
    return row
