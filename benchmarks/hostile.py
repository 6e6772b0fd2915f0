"""What hostile requests cost others: the gaps in eight streams while the corpus is sent.

Starts a service of its own with `tuneloop up`, so nothing else may use its ports:
`python -m benchmarks.hostile --model MODEL --engine transformers`. Prints a report as JSON.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx

from benchmarks.hostile_corpus import HostileRequest, read_corpus
from benchmarks.load import PROMPTS
from benchmarks.loop import free_port, settle
from tuneloop.supervisor.child import ServiceChild

STREAMS = 8
STREAM_TOKENS = 48
AT_ONCE = 2
"""Hostile requests at the same time."""
TOOLS = {"TUNELOOP_GENERATION_TOOL_PARSER": "hermes"}


@dataclass(slots=True, kw_only=True)
class Answer:
    """What a hostile request got."""

    name: str
    status: int
    """0: no answer."""
    wanted: int | None
    seconds: float
    text: str

    @property
    def is_wrong(self) -> bool:
        """Whether the status is not what it has to be."""
        if self.wanted is not None:
            return self.status != self.wanted
        return not 200 <= self.status < 500


@dataclass(slots=True)
class Streams:
    """Chats that stream one after the other, and the gaps between pieces of their text."""

    url: str
    gaps: list[float] = field(default_factory=list)
    """In seconds, between pieces of one text."""
    chats: int = 0
    failures: list[str] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def run(self, count: int) -> AsyncIterator[None]:
        """Keep so many chats going."""
        stopping = asyncio.Event()
        async with httpx.AsyncClient(base_url=self.url, timeout=120) as client:
            clients = [asyncio.create_task(self._chat(client, n, stopping)) for n in range(count)]
            yield
            stopping.set()
            await asyncio.gather(*clients)

    async def _chat(self, client: httpx.AsyncClient, number: int, stopping: asyncio.Event) -> None:
        for prompt in itertools.cycle(PROMPTS[number:] + PROMPTS[:number]):
            if stopping.is_set():
                return
            try:
                await self._stream(client, f"User {number}: {prompt}")
            except httpx.HTTPError as error:
                self.failures.append(repr(error))

    async def _stream(self, client: httpx.AsyncClient, prompt: str) -> None:
        body = {
            "model": "tuneloop",
            "stream": True,
            "max_tokens": STREAM_TOKENS,
            "messages": [{"role": "user", "content": prompt}],
        }
        last: float | None = None
        ended = False
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    now = time.perf_counter()
                    if last is not None:
                        self.gaps.append(now - last)
                    last = now
                    ended = line == "data: [DONE]"
        self.chats += 1
        if answer.status_code != 200 or not ended:
            self.failures.append(f"status {answer.status_code}, ended: {ended}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of it."""

    requests: int
    statuses: dict[int, int]
    wrong: list[Answer]
    slowest_answers: list[tuple[str, float]]
    chats: int
    chat_failures: list[str]
    quiet_p99_seconds: float
    """Of the gaps before the corpus was sent."""
    p99_seconds: float
    longest_gap_seconds: float


async def send_corpus(url: str, corpus: Sequence[HostileRequest]) -> list[Answer]:
    """Send every request, a few at a time."""
    turns = asyncio.Semaphore(AT_ONCE)
    headers = {"content-type": "application/json"}

    async def send(client: httpx.AsyncClient, request: HostileRequest) -> Answer:
        async with turns:
            started = time.perf_counter()
            status, text = 0, ""
            try:
                answer = await client.post(request.path, content=request.body, headers=headers)
                status, text = answer.status_code, answer.text[:200]
            except httpx.HTTPError as error:
                text = repr(error)
            seconds = time.perf_counter() - started
        return Answer(
            name=request.name, status=status, wanted=request.status, seconds=seconds, text=text
        )

    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        return await asyncio.gather(*(send(client, request) for request in corpus))


async def measure(url: str, quiet_seconds: float) -> Report:
    """Stream alone for some seconds, then beside the corpus."""
    corpus = read_corpus()
    streams = Streams(url)
    async with streams.run(STREAMS):
        await asyncio.sleep(quiet_seconds)
        quiet, streams.gaps = streams.gaps, []
        answers = await send_corpus(url, corpus)
    return Report(
        requests=len(answers),
        statuses=dict(Counter(answer.status for answer in answers)),
        wrong=[answer for answer in answers if answer.is_wrong],
        slowest_answers=[
            (answer.name, round(answer.seconds, 2))
            for answer in sorted(answers, key=lambda a: -a.seconds)[:5]
        ],
        chats=streams.chats,
        chat_failures=streams.failures,
        quiet_p99_seconds=p99(quiet),
        p99_seconds=p99(streams.gaps),
        longest_gap_seconds=round(max(streams.gaps, default=0.0), 3),
    )


def p99(gaps: Sequence[float]) -> float:
    """Return the 99th percentile, in seconds."""
    ranked = sorted(gaps)
    return round(ranked[int(0.99 * (len(ranked) - 1))], 3) if ranked else 0.0


def main() -> None:
    """Start a service, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder or name of the model")
    parser.add_argument("--engine", default="transformers", choices=["transformers", "vllm"])
    parser.add_argument("--quiet-seconds", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        service = ServiceChild(
            Path(folder),
            port=free_port(),
            arguments=["--model", options.model, "--engine", options.engine],
            environment=TOOLS,
        )
        with service:
            service.wait_until_ready()
            # The learner and the reward model are loaded after generation, with all processors.
            settle(service)
            report = asyncio.run(measure(service.url, options.quiet_seconds))
            restarts = service.run_state()["processes"]["generation"]["restarts"]
    print(json.dumps(asdict(report) | {"generation_restarts": restarts}, indent=2))


if __name__ == "__main__":
    main()
