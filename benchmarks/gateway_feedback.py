"""Feedback acknowledged once it is on the disk, beside what JetStream itself takes.

Both write to one nats-server that syncs every message (`sync_interval: always`), the same bytes to
the same kind of subject. JetStream is given them by nats-py: one after the other, 256 at once, and
with `publish_async`. The gateway is given them over HTTP: one feedback a request from many clients
(with the client's own id, which is checked for uniqueness, and without), and in batches.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
import nats
from nats.js import JetStreamContext

from benchmarks.gateway_edge import Edge
from benchmarks.intervals import median
from benchmarks.load import percentile, session_for
from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.feedback import Feedback, Thumb
from tuneloop.gateway.completion_ids import CompletionIds

CLIENTS = 64
BATCH = 100
BATCH_CLIENTS = 4
AT_ONCE = 256

Give = Callable[[int], Awaitable[list[float]]]
"""Gives so many events; returns the seconds each request took."""


@dataclass(slots=True, kw_only=True)
class Side:
    """One way to give feedback, and how it went in each round."""

    give: Give
    events_per_second: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of every request, until its acknowledgement."""


async def measure_feedback(edge: Edge, *, events: int, rounds: int) -> dict[str, Any]:
    """Every side in turn, `rounds` times, `events` each; the serial one gives a tenth."""
    client = await nats.connect(edge.nats_url)
    jetstream = client.jetstream(publish_async_max_pending=AT_ONCE)
    writer = Writer(edge.secret)
    async with session_for(edge.url, CLIENTS) as session:
        sides = {
            "jetstream_serial": Side(give=Publishing(jetstream, writer, at_once=1)),
            "jetstream_256_at_once": Side(give=Publishing(jetstream, writer, at_once=AT_ONCE)),
            "jetstream_publish_async": Side(give=PublishingAsync(jetstream, writer)),
            "gateway_one_client": Side(give=Posting(session, writer, 1)),
            "gateway": Side(give=Posting(session, writer, CLIENTS)),
            "gateway_with_ids": Side(give=Posting(session, writer, CLIENTS, with_ids=True)),
            "gateway_batches": Side(give=PostingBatches(session, writer)),
        }
        # The gateway makes the stream when it first needs it.
        await sides["gateway"].give(1)
        given = 0
        before = await stored(jetstream)
        for number in range(rounds + 1):
            for name, side in list(sides.items())[:: 1 if number % 2 else -1]:
                alone = name in ("jetstream_serial", "gateway_one_client")
                count = events // 10 if alone or number == 0 else events
                started = time.perf_counter()
                seconds = await side.give(count)
                rate = count / (time.perf_counter() - started)
                given += count
                # The first round warms up.
                if number:
                    side.events_per_second.append(rate)
                    side.seconds += seconds
        kept = await stored(jetstream) - before
    await client.close()
    return report(sides, len(writer.event()[1])) | {"acknowledged": given, "stored": kept}


def report(sides: dict[str, Side], event_bytes: int) -> dict[str, Any]:
    """Rates, times, and the gateway's rates as shares of the best JetStream had in that round."""
    limits = [
        max(rates)
        for rates in zip(
            *(s.events_per_second for n, s in sides.items() if n.startswith("jetstream")),
            strict=True,
        )
    ]
    rows = {}
    for name, side in sides.items():
        ratios = [a / b for a, b in zip(side.events_per_second, limits, strict=True)]
        rows[name] = {
            "events_per_second": median(side.events_per_second),
            "share_of_jetstream": median(ratios),
            "request_ms_p50": percentile(side.seconds, 0.5) * 1e3,
            "request_ms_p99": percentile(side.seconds, 0.99) * 1e3,
        }
    return {"sides": rows, "clients": CLIENTS, "batch": BATCH, "event_bytes": event_bytes}


async def stored(jetstream: JetStreamContext) -> int:
    """Messages in the stream of feedback."""
    return int((await jetstream.stream_info(subjects.FEEDBACK)).state.messages)


async def spread(count: int, workers: int, one: Callable[[int], Awaitable[None]]) -> list[float]:
    """Call `one` so often, `workers` at a time; the seconds of each call."""
    turns = iter(range(count))
    seconds = []

    async def work(turns: Iterator[int]) -> None:
        for turn in turns:
            started = time.perf_counter()
            await one(turn)
            seconds.append(time.perf_counter() - started)

    await asyncio.gather(*(work(turns) for _ in range(workers)))
    return seconds


class Writer:
    """Makes thumbs for completions of nobody in particular, each with another id."""

    def __init__(self, secret: bytes) -> None:
        self.ids = CompletionIds(secret)
        self.user = self.ids.user_hash("default", None)
        self.numbers = itertools.count()

    def event(self) -> tuple[str, bytes, dict[str, str]]:
        """Subject, bytes and headers as the gateway would publish them."""
        feedback_id = f"fb-{next(self.numbers):024d}"
        feedback = Feedback(
            feedback_id=feedback_id,
            policy="tuneloop",
            tenant="default",
            user_hash=self.user,
            completion_id=self.ids.make("chatcmpl", "default", self.user),
            judgement=Thumb(up=True),
            accepted_time=datetime.now(UTC),
        )
        subject = subjects.feedback("tuneloop", "thumb", self.user, feedback_id)
        return subject, wire.encode_feedback(feedback), {"Nats-Msg-Id": feedback_id}

    def body(self, *, with_id: bool = False) -> dict[str, Any]:
        """As a client sends it."""
        completion_id = self.ids.make("chatcmpl", "default", self.user)
        document = {"kind": "thumb", "completion_id": completion_id, "value": "up"}
        return document | ({"id": f"fb-client-{next(self.numbers):015d}"} if with_id else {})


class Publishing:
    """nats-py's `publish`, which waits for the acknowledgement."""

    def __init__(self, jetstream: JetStreamContext, writer: Writer, at_once: int) -> None:
        self.jetstream = jetstream
        self.writer = writer
        self.at_once = at_once

    async def __call__(self, count: int) -> list[float]:
        events = [self.writer.event() for _ in range(count)]

        async def one(turn: int) -> None:
            subject, data, headers = events[turn]
            await self.jetstream.publish(subject, data, headers=headers)

        return await spread(count, self.at_once, one)


class PublishingAsync:
    """nats-py's `publish_async`: 256 sent before their acknowledgements are waited for."""

    def __init__(self, jetstream: JetStreamContext, writer: Writer) -> None:
        self.jetstream = jetstream
        self.writer = writer

    async def __call__(self, count: int) -> list[float]:
        events = [self.writer.event() for _ in range(count)]
        started = time.perf_counter()
        acknowledgements = []
        for subject, data, headers in events:
            acknowledgements.append(
                await self.jetstream.publish_async(subject, data, headers=headers)
            )
        await asyncio.gather(*acknowledgements)
        return [time.perf_counter() - started]


class Posting:
    """`POST /v1/feedback` from several clients."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        writer: Writer,
        clients: int,
        *,
        with_ids: bool = False,
    ) -> None:
        self.session = session
        self.writer = writer
        self.clients = clients
        self.with_ids = with_ids

    async def __call__(self, count: int) -> list[float]:
        bodies = [encoded(self.writer.body(with_id=self.with_ids)) for _ in range(count)]

        async def one(turn: int) -> None:
            await post(self.session, "/v1/feedback", bodies[turn])

        return await spread(count, self.clients, one)


class PostingBatches:
    """`POST /v1/feedback/batch` from a few clients."""

    def __init__(self, session: aiohttp.ClientSession, writer: Writer) -> None:
        self.session = session
        self.writer = writer

    async def __call__(self, count: int) -> list[float]:
        bodies = []
        for start in range(0, count, BATCH):
            size = min(BATCH, count - start)
            bodies.append(encoded({"feedback": [self.writer.body() for _ in range(size)]}))

        async def one(turn: int) -> None:
            await post(self.session, "/v1/feedback/batch", bodies[turn])

        return await spread(len(bodies), BATCH_CLIENTS, one)


def encoded(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


async def post(session: aiohttp.ClientSession, path: str, data: bytes) -> None:
    """Send a body; raises `RuntimeError` unless all of it was accepted."""
    headers = {"content-type": "application/json"}
    async with session.post(path, data=data, headers=headers) as response:
        answer = await response.read()
        if response.status != 202:
            raise RuntimeError(f"{path}: {response.status} {answer[:500]!r}")
