"""From one thumb to the version that learned from it, with the settings that everybody starts with.

    python -m benchmarks.thumb_to_version [--rounds 5] [--users 12] [--output FILE]

Starts `tuneloop up` with its defaults (the gate decides) and presses one thumb at a time, with a
minute between versions: while nobody else is there, and while `--users` people chat without a
pause. Says where the time goes:

* learn: from the thumb's 202 to the new weights (the wait for more thumbs, the step, the commit);
* score: the suites and the gate's prompts, by the trainer's own weights, as the version is saved;
* examine: the gate, which compares them with the stable version's;
* the rest: storing, promoting, loading.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.load import load, percentile
from benchmarks.loop import answer_id, counted, free_port, idle, policies, thumb, write_result
from tuneloop.models.resolve import resolve
from tuneloop.supervisor.child import ServiceChild

console = Console()
STAGES = ("learn", "score", "examine", "rest")
LONGEST_SECONDS = 900
BETWEEN_SECONDS = 61.0
"""Past `publish_every_seconds`: the next thumb does not wait for others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThumbTimes:
    """Where the time of one thumb went, in seconds; `total` ends when the version serves."""

    learn: float
    score: float
    examine: float
    rest: float
    total: float


async def press_one(client: httpx.AsyncClient, port: int, number: int) -> ThumbTimes | None:
    """Press a thumb and wait for its version; None if the gate refused it."""
    completion_id = await answer_id(client, number)
    before = await policies(client)
    newest = max((v["policy_version"] for v in before["data"] or ()), default=0)
    suites = counted(port, "tuneloop_release_exam_seconds_sum")
    gate = counted(port, "tuneloop_release_gate_seconds_sum")
    await thumb(client, completion_id, up=True)
    accepted, started = time.time(), time.perf_counter()
    async with asyncio.timeout(LONGEST_SECONDS):
        while (now := await policies(client))["policy_version"] == before["policy_version"]:
            # Null while the learner does not answer, which has a lot to do.
            added = [v for v in now["data"] or () if v["policy_version"] > newest]
            if added and added[0]["state"] == "quarantined":
                console.print(f"refused: {added[0]['decisions'][-1]['reason']}")
                return None
            await asyncio.sleep(0.1)
        total = time.perf_counter() - started
        while now["data"] is None:
            now = await policies(client)
    served = next(v for v in now["data"] if v["policy_version"] == now["policy_version"])
    score = counted(port, "tuneloop_release_exam_seconds_sum") - suites
    # A version is recorded once it was scored.
    learn = datetime.fromisoformat(served["created_time"]).timestamp() - accepted - score
    examine = counted(port, "tuneloop_release_gate_seconds_sum") - gate
    rest = total - learn - score - examine
    return ThumbTimes(learn=learn, score=score, examine=examine, rest=rest, total=total)


@contextlib.asynccontextmanager
async def busy_users(base_url: str, users: int) -> AsyncIterator[list[float]]:
    """So many chat without a pause inside the block; the gaps they saw, in seconds, after it."""
    gaps: list[float] = []
    ended = asyncio.Event()

    async def chat() -> None:
        while not ended.is_set():
            result = await load(base_url, streams=users, requests=users, max_tokens=64, train=False)
            gaps.extend(result.gap_seconds)

    chatting = asyncio.create_task(chat()) if users else None
    try:
        yield gaps
    finally:
        ended.set()
        if chatting is not None:
            await chatting


async def measure(service: ServiceChild, *, rounds: int, users: int) -> dict[str, Any]:
    """Thumbs one after the other beside so many busy users."""
    port = service.run_state()["processes"]["learner"]["metrics_port"]
    times: list[ThumbTimes] = []
    timeout = httpx.Timeout(300)
    async with (
        busy_users(service.url, users) as gaps,
        httpx.AsyncClient(base_url=service.url, timeout=timeout) as client,
    ):
        for number in range(rounds):
            found = await press_one(client, port, 100 * users + number)
            if found is not None:
                times.append(found)
                console.print(f"{users} users: {found}")
            await idle(client)
            await asyncio.sleep(BETWEEN_SECONDS)
    result: dict[str, Any] = {"users": users, "rounds": rounds, "thumbs": list(map(asdict, times))}
    if gaps:
        result["gap_seconds_p50"] = percentile(gaps, 0.5)
        result["gap_seconds_p99"] = percentile(gaps, 0.99)
    return result


def report(result: dict[str, Any]) -> None:
    table = Table(
        title=f"One thumb to the version that serves, {result['model']}, median (longest)"
    )
    for column in ("busy users", *STAGES, "total", "p99 gap of users"):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        cells = []
        for stage in (*STAGES, "total"):
            seconds = [times[stage] for times in row["thumbs"]] or [float("nan")]
            cells.append(f"{statistics.median(seconds):.1f} s ({max(seconds):.1f})")
        gap = row.get("gap_seconds_p99")
        table.add_row(str(row["users"]), *cells, "" if gap is None else f"{1000 * gap:.0f} ms")
    console.print(table)


def main() -> int:
    """Measure without users and beside them, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--users", type=int, default=12)
    parser.add_argument("--output", type=Path, help="file for the results; absent: by the device")
    arguments = parser.parse_args()
    cache_dir = Path(os.environ.get("TUNELOOP_CACHE_DIR", Path.home() / ".cache" / "tuneloop"))
    model = resolve(arguments.model, cache_dir)
    with tempfile.TemporaryDirectory() as scratch:
        service = ServiceChild(
            Path(scratch) / "data", port=free_port(), arguments=["--model", str(model)]
        )
        with service:
            service.wait_until_ready()
            rows = [
                asyncio.run(measure(service, rounds=arguments.rounds, users=users))
                for users in (0, arguments.users)
            ]
    report(write_result("thumb-to-version", arguments.model, {"rows": rows}, arguments.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
