"""`GET /v1/events`: what the service does, live, as server-sent events.

One poller asks the services for all listeners together, and only while there are any. An event
is the whole of what it names and is sent when that has changed, so that a listener who is slow or
comes late misses nothing that still holds:

* `learner`: as `GET /v1/learner`; null while the learner does not answer
* `policies`: as `GET /v1/policies`; null while no service answers
* `feedback`: the latest, as `GET /v1/feedback`; null while the learner does not answer
* `steps`: loss and KL of the last optimizer steps; null while the bus does not answer
* `throughput`: of this gateway
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import StreamingResponse

from tuneloop import wire
from tuneloop.api.policies import PolicyList
from tuneloop.bus import Bus, subjects
from tuneloop.errors import TuneloopError
from tuneloop.gateway.context import Gateway
from tuneloop.gateway.events.throughput import Throughput
from tuneloop.gateway.feedback.browse import feedback_page
from tuneloop.gateway.routes.learner import learner_status
from tuneloop.gateway.routes.policies import get_serving, policies_document
from tuneloop.v1 import learner_pb2

SHOWN = 200
FIGURES = ("loss", "kl")


class StepHistory:
    """The last steps; each event is read once, in the order they were stored."""

    def __init__(self, bus: Bus, policy: str) -> None:
        self._bus = bus
        self._subject = subjects.learner_step(policy)
        self._sequence: int | None = None
        self._steps: list[dict[str, Any]] = []

    async def latest(self) -> dict[str, Any]:
        """Return the steps, oldest first. Raises `Unavailable` while the bus does not answer."""
        newest = await self._bus.last(self._subject)
        if newest is None:
            self._steps = []
            return self._document()
        if self._sequence is None or newest.sequence < self._sequence:
            # The first time, and after a bus with other data came back.
            self._steps, self._sequence = [], max(0, newest.sequence - SHOWN)
        while self._sequence < newest.sequence:
            event = await self._bus.first_after(self._subject, self._sequence)
            if event is None:
                break
            self._sequence = event.sequence
            stepped = wire.decode_learner_stepped(event.data)
            figures = {name: stepped.metrics.get(name) for name in FIGURES}
            self._steps.append(
                {"step": stepped.step, "time": stepped.stepped_time.isoformat(), **figures}
            )
        del self._steps[:-SHOWN]
        return self._document()

    def _document(self) -> dict[str, Any]:
        return {"object": "list", "data": list(self._steps)}


logger = logging.getLogger("tuneloop.gateway")

router = APIRouter(tags=["learning"])
INTERVAL = 1.0
"""Seconds between two questions to a service."""
VERSIONS_INTERVAL = 5.0
"""Seconds between two lists of versions, while the same one serves: the learner counts for each."""
VERSIONS = 50
FEEDBACK = 20
HEARTBEAT = b": still here\n\n"
Source = Callable[[], Awaitable[Any]]


class Feed:
    """The latest of each event, and the poller that keeps it so while there are listeners."""

    def __init__(self, gateway: Gateway) -> None:
        latest = learner_pb2.ListFeedbackRequest(page_size=FEEDBACK)
        steps = StepHistory(gateway.bus, gateway.settings.policy)
        throughput = Throughput(lambda: self.listeners)
        self.sources: Mapping[str, Source] = {
            "learner": lambda: learner_status(gateway),
            "policies": PolicyChanges(gateway).latest,
            "feedback": lambda: feedback_page(gateway, latest),
            "steps": steps.latest,
            "throughput": throughput.latest,
        }
        self.listeners = 0
        self.closed = False
        self._latest: dict[str, tuple[int, bytes]] = {}
        self._revision = 0
        self._change = asyncio.Event()
        self._polling: list[asyncio.Task[None]] = []

    async def listen(self, heartbeat_seconds: float) -> AsyncGenerator[bytes]:
        """Yield every event now, then each as it changes, and comments in between."""
        self.listeners += 1
        if self.listeners == 1:
            self._start()
        seen = 0
        try:
            # At once, so that the listener knows that it is connected.
            yield HEARTBEAT
            while not self.closed:
                change = self._change
                fresh = [data for revision, data in self._latest.values() if revision > seen]
                seen = self._revision
                if fresh:
                    yield b"".join(fresh)
                    continue
                try:
                    async with asyncio.timeout(heartbeat_seconds):
                        await change.wait()
                except TimeoutError:
                    yield HEARTBEAT
        finally:
            self.listeners -= 1
            if self.listeners == 0:
                self._stop()

    def close(self) -> None:
        """End every listener's stream, which a server that drains would wait for."""
        self.closed = True
        self._stop()
        self._notify()

    def _start(self) -> None:
        # The events of the last listener's time may be old.
        self._latest.clear()
        self._polling = [
            asyncio.create_task(self._poll(name, source)) for name, source in self.sources.items()
        ]

    def _stop(self) -> None:
        for task in self._polling:
            task.cancel()
        self._polling = []

    async def _poll(self, name: str, source: Source) -> None:
        while True:
            try:
                document = await source()
            except TuneloopError:
                document = None
            except Exception:
                # One failing source must not stop the others.
                logger.exception("the event %s could not be made", name)
                document = None
            self._update(name, document)
            await asyncio.sleep(INTERVAL)

    def _update(self, name: str, document: Any) -> None:
        data = f"event: {name}\ndata: {json.dumps(document)}\n\n".encode()
        if name in self._latest and self._latest[name][1] == data:
            return
        self._revision += 1
        self._latest[name] = (self._revision, data)
        self._notify()

    def _notify(self) -> None:
        self._change.set()
        self._change = asyncio.Event()


class PolicyChanges:
    """The serving version, read every time, and the list of versions, read when that changes."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._document: PolicyList | None = None
        self._due = 0.0

    async def latest(self) -> PolicyList:
        """Return the document of `GET /v1/policies`. Raises `Unavailable` if no service answers."""
        now = asyncio.get_running_loop().time()
        if self._document and self._document["data"] is not None and now < self._due:
            with suppress(TuneloopError):
                if await get_serving(self._gateway) == self._document["serving"]:
                    return self._document
        self._document = await policies_document(self._gateway, VERSIONS, None)
        self._due = now + VERSIONS_INTERVAL
        return self._document


class EventsResponse(StreamingResponse):
    """Server-sent events."""

    media_type = "text/event-stream"


@router.get(
    "/v1/events",
    response_class=EventsResponse,
)
async def listen(request: Request) -> EventsResponse:
    """Stream live events: `learner`, `policies`, `feedback`, `steps`, `throughput`.

    The stream does not end.
    """
    feed: Feed = request.app.state.feed
    heartbeat_seconds: float = request.app.state.gateway.settings.heartbeat_seconds
    return EventsResponse(
        feed.listen(heartbeat_seconds),
        headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
    )
