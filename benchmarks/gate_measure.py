"""What `gate_power` takes from real models: the noise of versions, and the seconds of a gate."""

import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks.load import load
from benchmarks.loop import answer_id, free_port, idle, thumb
from tuneloop.generation.vllm.environment import prepare_environment
from tuneloop.models.resolve import resolve
from tuneloop.supervisor.child import ServiceChild

ROUNDS = 4
STREAMS = 8
THUMBS = 16
SUITES, EXAMINATION = "tuneloop_release_exam_seconds", "tuneloop_release_gate_seconds"
WAIT_SECONDS = 600


def measure(model: Path, versions: Sequence[Path]) -> dict[str, Any]:
    """Return the value of each item of the shipped suite under the model and its LoRA versions."""
    from tuneloop.learner.abilities.exam import AbilityExam, ReferenceExaminee
    from tuneloop.learner.abilities.suite import load_suite
    from tuneloop.learner.trainer.policy import PolicyTrainer
    from tuneloop.learner.trainer.settings import TrainerSettings

    trainer = PolicyTrainer(model, TrainerSettings(), base_model=model.name)
    exam = AbilityExam(load_suite(), model)
    values = []
    for folder in (None, *versions):
        started = time.perf_counter()
        if folder is not None:
            trainer.load_weights(folder)
        examinee = ReferenceExaminee(trainer) if folder is None else trainer
        scores = exam.score(examinee, sampled_items=0)
        values.append([round(item.value(sampled=False), 5) for item in scores.items])
        print(folder or model, f"{time.perf_counter() - started:.1f} s", flush=True)
    return {"versions": ["0", *(str(int(folder.name)) for folder in versions)], "values": values}


def seconds(model: str = "smollm2-135m-instruct") -> list[dict[str, Any]]:
    """Return how long a gate takes in a running service, idle and under eight streams."""
    prepare_environment(threads=0)
    cache_dir = Path(os.environ.get("TUNELOOP_CACHE_DIR", Path.home() / ".cache" / "tuneloop"))
    with tempfile.TemporaryDirectory() as scratch:
        service = ServiceChild(
            Path(scratch) / "data",
            port=free_port(),
            arguments=["--model", str(resolve(model, cache_dir))],
            environment={
                "TUNELOOP_LEARNER_POLICY_GRADIENT": "off",
                "TUNELOOP_LEARNER_PUBLISH_EVERY_STEPS": "1",
            },
        )
        with service:
            service.wait_until_ready()
            port = service.run_state()["processes"]["learner"]["metrics_port"]
            return asyncio.run(measure_gates(service.url, f"http://127.0.0.1:{port}/metrics"))


async def measure_gates(url: str, metrics: str) -> list[dict[str, Any]]:
    """Let versions be made and examined; the first one is apart, as version 0 is scored with it."""
    await reach(metrics)
    rows = [row("idle, with version 0", [await one_gate(url, metrics, 0)])]
    rows.append(row("idle", [await one_gate(url, metrics, 1 + n) for n in range(ROUNDS)]))
    async with streaming(url):
        loaded = [await one_gate(url, metrics, 1 + ROUNDS + n) for n in range(ROUNDS)]
    return [*rows, row(f"{STREAMS} streams", loaded)]


async def reach(metrics: str) -> None:
    """Wait for the learner, which starts after chat is ready."""
    async with asyncio.timeout(WAIT_SECONDS), httpx.AsyncClient() as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                await client.get(metrics)
                return
            await asyncio.sleep(0.5)


@contextlib.asynccontextmanager
async def streaming(url: str) -> AsyncIterator[None]:
    """Keep eight streams busy."""

    async def forever() -> None:
        while True:
            await load(url, streams=STREAMS, requests=STREAMS, max_tokens=64)

    task = asyncio.create_task(forever())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def one_gate(url: str, metrics: str, number: int) -> tuple[float, float]:
    """Give sixteen thumbs; return the seconds of scoring and of examining their version."""
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        before = await totals(client, metrics)
        seeds = range(number * THUMBS, (number + 1) * THUMBS)
        ids = await asyncio.gather(*(answer_id(client, seed) for seed in seeds))
        await asyncio.gather(*(thumb(client, i, up=n % 2 == 0) for n, i in enumerate(ids)))
        async with asyncio.timeout(WAIT_SECONDS):
            while (after := await totals(client, metrics))[f"{EXAMINATION}_count"] <= before[
                f"{EXAMINATION}_count"
            ]:
                await asyncio.sleep(0.5)
        await idle(client)
    suites = after[f"{SUITES}_sum"] - before[f"{SUITES}_sum"]
    return suites, after[f"{EXAMINATION}_sum"] - before[f"{EXAMINATION}_sum"]


async def totals(client: httpx.AsyncClient, metrics: str) -> dict[str, float]:
    """Return sums and counts of the two histograms; 0 before the learner has them."""
    found = {f"{name}_{part}": 0.0 for name in (SUITES, EXAMINATION) for part in ("sum", "count")}
    for line in (await client.get(metrics)).text.splitlines():
        name, _, value = line.rpartition(" ")
        if name in found:
            found[name] = float(value)
    return found


def row(name: str, measured: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return a line of the table: medians and ranges."""
    together = [suites + examination for suites, examination in measured]
    return {
        "load": name,
        "suites": spread([suites for suites, _ in measured]),
        "examination": spread([examination for _, examination in measured]),
        "together": spread(together),
    }


def spread(values: Sequence[float]) -> str:
    """Return the median and the range of some seconds."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
