"""Chat of a real model: the whole of tuneloop beside vLLM's own OpenAI server.

One model, the engine settings of both the same, both started once and then asked in turn, the same
prompts over the same client. The streams begin apart, as users do. Chats are kept out of training,
so that gateway and generation are compared with what does the same; one row is of chats that are
scored and learned from while the next ones are answered.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gateway_edge import Edge
from benchmarks.intervals import added, median
from benchmarks.load import LoadResult, load, percentile
from benchmarks.loop import free_port, settle, vllm_server
from tuneloop.supervisor.child import ServiceChild

MAX_MODEL_LEN = 2048
APART_SECONDS = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure, and how often."""

    streams: int
    max_tokens: int
    """Short answers: many first tokens in little time."""
    chats: int
    """In each run, for every stream."""
    pairs: int
    train: bool = False
    """Whether our side learns from them meanwhile: then reward and learner work as well."""


FULL = (
    Plan(streams=8, max_tokens=16, chats=8, pairs=5),
    Plan(streams=8, max_tokens=64, chats=3, pairs=3),
    Plan(streams=1, max_tokens=64, chats=4, pairs=2),
    Plan(streams=32, max_tokens=64, chats=2, pairs=2),
    Plan(streams=8, max_tokens=64, chats=3, pairs=3, train=True),
)
QUICK = tuple(Plan(streams=n, max_tokens=16, chats=2, pairs=2) for n in (1, 8, 32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """The two, both up."""

    service: ServiceChild
    theirs: str

    def edge(self) -> Edge:
        """Where feedback goes in ours."""
        state = self.service.run_state()
        generation = state["processes"]["generation"]["port"]
        secret = self.service.data_dir / "keys" / "gateway_secret"
        return Edge(
            url=self.service.url,
            generation_address=f"127.0.0.1:{generation}",
            nats_url=state["nats_url"],
            secret=secret.read_bytes().strip(),
        )


@contextlib.contextmanager
def servers(model: Path, scratch: Path) -> Iterator[Servers]:
    """Start both, and stop them in the end. PPO is off: a benchmark's chats teach nothing."""
    settings = {
        "TUNELOOP_GENERATION_MAX_MODEL_LEN": str(MAX_MODEL_LEN),
        "TUNELOOP_LEARNER_POLICY_GRADIENT": "off",
    }
    service = ServiceChild(
        scratch / "data",
        port=free_port(),
        arguments=["--model", str(model)],
        environment=settings,
    )
    with service:
        service.wait_until_ready()
        with vllm_server(model, scratch / "vllm.log", MAX_MODEL_LEN) as (theirs, _):
            yield Servers(service=service, theirs=theirs)


def measure_model(running: Servers, plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """A row for each plan."""
    rows = []
    for plan in plans:
        sides = {"ours": running.service.url, "theirs": running.theirs}
        for url in sides.values():
            asyncio.run(run(url, plan, chats=1))
        pairs = []
        for number in range(plan.pairs):
            order = list(sides) if number % 2 == 0 else list(reversed(sides))
            seen = {}
            for name in order:
                if plan.train:
                    settle(running.service)
                seen[name] = asyncio.run(run(sides[name], plan, chats=plan.chats))
            pairs.append((seen["ours"], seen["theirs"]))
        rows.append(model_row(plan, pairs))
    return rows


async def run(url: str, plan: Plan, chats: int) -> LoadResult:
    """One run."""
    return await load(
        url,
        streams=plan.streams,
        requests=chats * plan.streams,
        max_tokens=plan.max_tokens,
        apart=APART_SECONDS,
        train=plan.train,
    )


def model_row(plan: Plan, pairs: list[tuple[LoadResult, LoadResult]]) -> dict[str, Any]:
    """Latencies in milliseconds and tokens/s, and their differences and ratios."""
    first = [(ms(a.first_token_seconds), ms(b.first_token_seconds)) for a, b in pairs]
    token = [(ms(a.seconds_per_token), ms(b.seconds_per_token)) for a, b in pairs]
    gaps = [(ms(a.gap_seconds), ms(b.gap_seconds)) for a, b in pairs]
    ratios = [a.tokens_per_second / b.tokens_per_second for a, b in pairs]
    return {
        "streams": plan.streams,
        "max_tokens": plan.max_tokens,
        "train": plan.train,
        "pairs": len(pairs),
        "chats": sum(len(a.chats) for a, _ in pairs),
        "failed": sum(a.failed + b.failed for a, b in pairs),
        "tuneloop_tokens_per_second": median([a.tokens_per_second for a, _ in pairs]),
        "vllm_tokens_per_second": median([b.tokens_per_second for _, b in pairs]),
        "throughput_ratio": median(ratios),
        "first_token_ms": compared(first),
        "time_per_token_ms": compared(token),
        "gap_between_pieces_ms": compared(gaps),
    }


def compared(pairs: list[tuple[list[float], list[float]]]) -> dict[str, Any]:
    """Both sides' quantiles, and by how much ours is above."""
    ours = [value for side, _ in pairs for value in side]
    theirs = [value for _, side in pairs for value in side]
    return {
        f"p{round(share * 100)}": {
            "tuneloop": percentile(ours, share),
            "vllm": percentile(theirs, share),
            "added": added(pairs, share),
        }
        for share in (0.5, 0.99)
    }


def ms(seconds: list[float]) -> list[float]:
    return [value * 1e3 for value in seconds]
