"""Publishes events without ever delaying an answer: a bounded buffer and a background task.

An event is retried until the bus has stored it, always with the same id, so that a retry after a
lost acknowledgement adds nothing. When the buffer is full the oldest rollout is dropped, and
`tuneloop_rollouts_dropped_total` counts it.
"""

import asyncio
import contextlib
import logging
import math
from collections import deque
from dataclasses import dataclass

from tuneloop import tracing, wire
from tuneloop.backoff import Backoff
from tuneloop.bus import Bus, subjects
from tuneloop.errors import TuneloopError, Unavailable
from tuneloop.generation import metrics
from tuneloop.policies import Activation
from tuneloop.rollouts import Rollout

logger = logging.getLogger("tuneloop.generation")

CONCURRENCY = 32
"""Events published together: one at a time would wait for the disk each time."""
FIRST_DELAY = 0.2
LONGEST_DELAY = 5.0
"""Seconds before the second and between later attempts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event on its way to the bus."""

    subject: str
    event_id: str
    data: bytes
    traceparent: str
    """Of the event's cause; empty without tracing."""


class RolloutPublisher:
    """Buffers events and stores them on the bus in the background."""

    def __init__(self, bus: Bus, *, buffer_size: int) -> None:
        self.bus = bus
        self.buffer_size = buffer_size
        self.buffer: deque[Event] = deque()
        self.arrived = asyncio.Event()
        self.emptied = asyncio.Event()
        self.emptied.set()
        self.task: asyncio.Task[None] | None = None

    def publish(self, rollout: Rollout) -> None:
        """Buffer a finished rollout. Returns at once, and never raises because of the bus."""
        if not all(math.isfinite(logprob) for logprob in rollout.generation_logprobs):
            # The learner could not use it, and no decoder would ever accept it.
            logger.error("rollout %s has log-probs that are not finite", rollout.completion_id)
            metrics.rollouts_dropped.labels("invalid").inc()
            return
        subject = subjects.rollout_generated(rollout.policy, rollout.user_hash)
        data = wire.encode_rollout_generated(rollout)
        event_id = wire.rollout_event_id(rollout)
        traceparent = rollout.traceparent
        self.put(Event(subject=subject, event_id=event_id, data=data, traceparent=traceparent))

    def publish_activation(self, activation: Activation) -> None:
        """Buffer the news that a version serves."""
        subject = subjects.weights_activated(activation.policy)
        event_id = wire.activation_event_id(activation)
        data, traceparent = wire.encode_activation(activation), activation.traceparent
        self.put(Event(subject=subject, event_id=event_id, data=data, traceparent=traceparent))

    def put(self, event: Event) -> None:
        """Add an event to the buffer; drop the oldest if it is full."""
        if len(self.buffer) >= self.buffer_size:
            dropped = self.buffer.popleft()
            metrics.rollouts_dropped.labels("overflow").inc()
            logger.error("the bus has been unavailable for too long: dropped %s", dropped.event_id)
        self.buffer.append(event)
        metrics.rollout_buffer_length.set(len(self.buffer))
        self.emptied.clear()
        self.arrived.set()

    def start(self) -> None:
        """Start to publish in the background."""
        self.task = asyncio.create_task(self.run(), name="rollout publisher")

    async def stop(self, drain_seconds: float) -> None:
        """Publish what is buffered, for at most `drain_seconds`, and count what is left."""
        patience = drain_seconds if self.bus.connected else min(drain_seconds, FIRST_DELAY)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self.emptied.wait()
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
        if self.buffer:
            metrics.rollouts_dropped.labels("shutdown").inc(len(self.buffer))
            logger.error("stopped with %d events that could not be stored", len(self.buffer))

    async def run(self) -> None:
        """Publish in batches, and retry a batch that fails. Never returns."""
        delays = Backoff(FIRST_DELAY, LONGEST_DELAY)
        while True:
            await self.arrived.wait()
            if await self.publish_batch():
                delays.reset()
            else:
                await asyncio.sleep(delays.next_delay())
            if not self.buffer:
                self.arrived.clear()
                self.emptied.set()

    async def publish_batch(self) -> bool:
        """Publish the oldest events; return whether all were settled.

        Those that failed go back to the front.
        """
        batch = [self.buffer.popleft() for _ in range(min(CONCURRENCY, len(self.buffer)))]
        try:
            settled = await asyncio.gather(*(self.attempt(event) for event in batch))
        except asyncio.CancelledError:
            self.buffer.extendleft(reversed(batch))
            raise
        failed = [event for event, done in zip(batch, settled, strict=True) if not done]
        self.buffer.extendleft(reversed(failed))
        metrics.rollout_buffer_length.set(len(self.buffer))
        return not failed

    async def attempt(self, event: Event) -> bool:
        """Publish once; return False if it should be retried."""
        try:
            name = "publish rollout" if ".rollout." in event.subject else "publish activation"
            with tracing.span(name, kind="producer", parent=event.traceparent):
                await self.bus.publish(event.subject, event.data, event_id=event.event_id)
        except Unavailable as error:
            metrics.rollouts_retried.inc()
            logger.debug("%s is kept for later: %s", event.event_id, error)
            return False
        except TuneloopError as error:
            metrics.rollouts_dropped.labels("refused").inc()
            logger.error("the bus refused %s: %s", event.event_id, error)
            return True
        if ".rollout." in event.subject:
            metrics.rollouts_published.inc()
        return True
