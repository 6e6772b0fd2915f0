"""Streams that never end, one chat after the other, and when each piece of text reached them."""

import asyncio
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from benchmarks.load import PROMPTS
from tuneloop.v1 import generation_pb2, generation_pb2_grpc, rollout_pb2

MAX_TOKENS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Between a piece of text and the next of one chat; times are of `time.perf_counter`."""

    stream: int
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(slots=True)
class Streams:
    """`count` clients of the generation service; a context manager that runs them."""

    stub: generation_pb2_grpc.GenerationServiceStub
    count: int
    gaps: list[Gap] = field(default_factory=list, init=False)
    requests: int = field(default=0, init=False)
    failures: list[str] = field(default_factory=list, init=False)
    tokens: int = field(default=0, init=False)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list, init=False)
    _stopping: bool = field(default=False, init=False)

    async def __aenter__(self) -> "Streams":
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(self.count)]
        return self

    async def __aexit__(self, *error: object) -> None:
        """Let the chats that run come to their end."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def warm_up(self, seconds: float) -> None:
        """Wait at least `seconds`, and until every stream has had some text.

        Raises `RuntimeError` when requests fail.
        """
        await asyncio.sleep(seconds)
        while len({gap.stream for gap in self.gaps}) < self.count:
            if self.failures:
                raise RuntimeError(self.failures[0])
            await asyncio.sleep(0.2)

    def between(self, start: float, end: float) -> Iterator[Gap]:
        """Gaps that lie at least partly between two moments."""
        return (gap for gap in self.gaps if gap.end > start and gap.start < end)

    async def _run(self, stream: int) -> None:
        # Not in step with each other.
        await asyncio.sleep(0.2 * stream)
        for number in itertools.count():
            if self._stopping:
                return
            self.requests += 1
            try:
                prompt = PROMPTS[(stream + number) % len(PROMPTS)]
                # Never the same one twice, as users' are not: the prefix cache, cold after a swap,
                # would make the load without swaps another one.
                await self._chat(stream, f"Question {number} of user {stream}: {prompt}")
            except grpc.aio.AioRpcError as error:
                self.failures.append(f"{error.code().name}: {error.details()}")

    async def _chat(self, stream: int, prompt: str) -> None:
        request = generation_pb2.GenerateRequest(
            completion_id=f"chatcmpl-{stream}-{self.requests}",
            policy="tuneloop",
            sampling=rollout_pb2.SamplingParameters(
                max_tokens=MAX_TOKENS, temperature=0.7, top_p=1.0, n=1
            ),
            publish_rollout=False,
        )
        request.chat.messages.add(role="user", content=prompt)
        before: float | None = None
        final: Any = None
        async for event in self.stub.Generate(request, timeout=120):
            now = time.perf_counter()
            if event.WhichOneof("event") == "final":
                final = event.final
                continue
            if before is not None:
                self.gaps.append(Gap(stream=stream, start=before, end=now))
            before = now
        reasons = (rollout_pb2.FINISH_REASON_STOP, rollout_pb2.FINISH_REASON_LENGTH)
        if final is None or final.finish_reason not in reasons:
            self.failures.append("the stream was cut")
        else:
            self.tokens += final.usage.completion_tokens
