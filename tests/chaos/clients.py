"""Users who chat and press thumbs all the time, and remember all that they were told."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

ATTEMPTS = 12
"""How often a thumb that was not acknowledged is pressed again, always with the same id."""
RETRY_SECONDS = 1.0
THOUGHT_SECONDS = 1.0
"""Longest time a user reads before going on: without any, tiny answers take all processors, and
what is killed takes minutes to start again."""
REMEMBERED = 50
"""Answers that a user may still judge."""
SHARES = {"stream": 0.5, "thumb": 0.8, "repeat": 0.15, "clash": 0.05, "retract": 0.05}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A request that was not answered well; times are of `time.monotonic`."""

    what: str
    start: float
    end: float
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumb:
    """What was said, of which completion."""

    feedback_id: str
    completion_id: str
    up: bool


@dataclass(slots=True)
class Memory:
    """What all users together saw."""

    answers: dict[str, float] = field(default_factory=dict)
    """When each completion was answered, by `time.monotonic`."""
    versions: Counter[int] = field(default_factory=Counter)
    """Answers by the version they came from."""
    acknowledged: dict[str, Thumb] = field(default_factory=dict)
    """Thumbs with a 2xx answer."""
    attempted: dict[str, Thumb] = field(default_factory=dict)
    retracted: set[str] = field(default_factory=set)
    """Ids of which a retraction was attempted."""
    repeats: int = 0
    """Thumbs pressed again under an id that was acknowledged before."""
    refused: int = 0
    """Thumbs answered 503: pressed again later."""
    failures: list[Failure] = field(default_factory=list)
    broken_promises: list[tuple[str, str]] = field(default_factory=list)
    """Answers that contradict an earlier one, with the id of the thumb."""


class User:
    """One of them, in a loop."""

    def __init__(self, url: str, name: str, chance: random.Random, memory: Memory) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=120)
        self._name = name
        self._chance = chance
        self._memory = memory
        self._completions: list[str] = []
        self._count = 0

    async def run(self, stopping: asyncio.Event) -> None:
        """Chat and judge until told to stop."""
        async with self._http:
            while not stopping.is_set():
                self._count += 1
                if self._wants("stream"):
                    await self._noting_failure("stream", self._stream)
                else:
                    await self._noting_failure("chat", self._chat)
                if self._completions and self._wants("thumb"):
                    await self._judge(stopping)
                await asyncio.sleep(self._chance.uniform(0, THOUGHT_SECONDS))

    def _wants(self, what: str) -> bool:
        return self._chance.random() < SHARES[what]

    async def _noting_failure(self, what: str, ask: Any) -> None:
        start = time.monotonic()
        try:
            await ask()
        except (httpx.HTTPError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
            end = time.monotonic()
            self._memory.failures.append(Failure(what=what, start=start, end=end, problem=problem))
            # As a client would, and so as not to count one moment a thousand times.
            await asyncio.sleep(RETRY_SECONDS)

    def _body(self, **more: Any) -> dict[str, Any]:
        content = f"{self._name} asks for story {self._count}"
        return {
            "model": "tuneloop",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self._chance.randint(4, 24),
            **more,
        }

    async def _chat(self) -> None:
        response = await self._http.post("/v1/chat/completions", json=self._body())
        if response.status_code != httpx.codes.OK:
            raise ValueError(f"{response.status_code} {response.text[:200]}")
        answer = response.json()
        self._answered(answer["id"], answer["policy_version"])

    async def _stream(self) -> None:
        body = self._body(stream=True)
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                raise ValueError(f"{response.status_code} {(await response.aread())[:200]!r}")
            last: dict[str, Any] = {}
            async for chunk in chunks_of(response):
                if "error" in chunk:
                    raise ValueError(str(chunk["error"]))
                last = chunk
        if not last or last["choices"][0]["finish_reason"] not in ("stop", "length"):
            raise ValueError("the stream was cut")
        self._answered(last["id"], last["policy_version"])

    def _answered(self, completion_id: str, version: int) -> None:
        self._memory.answers[completion_id] = time.monotonic()
        self._memory.versions[version] += 1
        self._completions = [*self._completions[-REMEMBERED:], completion_id]

    async def _judge(self, stopping: asyncio.Event) -> None:
        number = len(self._memory.attempted)
        thumb = Thumb(
            feedback_id=f"chaos-{self._name}-{number}",
            completion_id=self._chance.choice(self._completions),
            up=self._chance.random() < 0.5,
        )
        self._memory.attempted[thumb.feedback_id] = thumb
        if not await self._press_until_acknowledged(thumb, stopping):
            return
        if self._wants("repeat"):
            await self._again(thumb, 202)
        if self._wants("clash"):
            other = Thumb(
                feedback_id=thumb.feedback_id, completion_id=thumb.completion_id, up=not thumb.up
            )
            await self._again(other, 409)
        if self._wants("retract"):
            self._memory.retracted.add(thumb.feedback_id)
            await self._noting_failure("retraction", lambda: self._retract(thumb))

    async def _press_until_acknowledged(self, thumb: Thumb, stopping: asyncio.Event) -> bool:
        for _ in range(ATTEMPTS):
            start = time.monotonic()
            try:
                response = await self._press(thumb)
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.status_code == 202:
                    self._memory.acknowledged[thumb.feedback_id] = thumb
                    return True
                problem = f"{response.status_code} {response.text[:200]}"
                if response.status_code == 503:
                    self._memory.refused += 1
            end = time.monotonic()
            failure = Failure(what="thumb", start=start, end=end, problem=problem)
            self._memory.failures.append(failure)
            if stopping.is_set():
                break
            await asyncio.sleep(RETRY_SECONDS)
        return False

    async def _press(self, thumb: Thumb) -> httpx.Response:
        body = {
            "id": thumb.feedback_id,
            "kind": "thumb",
            "completion_id": thumb.completion_id,
            "value": "up" if thumb.up else "down",
            # One vote for each user and completion: every thumb is a user of its own.
            "user": f"user-of-{thumb.feedback_id}",
        }
        return await self._http.post("/v1/feedback", json=body)

    async def _again(self, thumb: Thumb, expected: int) -> None:
        """Under an id that was acknowledged: the same answer, or 409 for another verdict."""
        self._memory.repeats += 1
        try:
            response = await self._press(thumb)
        except httpx.HTTPError:
            return
        if response.status_code not in (expected, 503):
            told = f"{response.status_code} instead of {expected}"
            self._memory.broken_promises.append((thumb.feedback_id, told))

    async def _retract(self, thumb: Thumb) -> None:
        response = await self._http.delete(f"/v1/feedback/{thumb.feedback_id}")
        if response.status_code != httpx.codes.OK:
            raise ValueError(f"{response.status_code} {response.text[:200]}")


async def chunks_of(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream; raises `ValueError` when it ends without saying so."""
    async for line in response.aiter_lines():
        if line == "data: [DONE]":
            return
        if line.startswith("data: "):
            yield json.loads(line[6:])
    raise ValueError("the stream ended without [DONE]")


@asynccontextmanager
async def users(url: str, count: int, seed: int) -> AsyncIterator[Memory]:
    """Keep `count` users busy within the block."""
    memory, stopping = Memory(), asyncio.Event()
    crowd = [
        User(url, f"u{number}", random.Random(f"{seed}-{number}"), memory)
        for number in range(count)
    ]
    tasks = [asyncio.create_task(user.run(stopping)) for user in crowd]
    try:
        yield memory
    finally:
        stopping.set()
        await asyncio.gather(*tasks)
