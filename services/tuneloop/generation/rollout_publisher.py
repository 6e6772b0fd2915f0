"""Publishes events without ever delaying an answer: a bounded buffer and a background task.

Where personal data is redacted, a completion that holds some is not published: its tokens cannot be
changed, as the log-probs are of them. Nor is one that could not be examined.

An event is retried until the bus has stored it, always with the same id, so that a retry after a
lost acknowledgement adds nothing. When the buffer is full, in events or bytes, the oldest event is
dropped, and `tuneloop_rollouts_dropped_total` counts its rollouts.

The candidates of a request for the best of several are held until one of them is chosen. Those that
were not are published as candidates, which nobody has read. Where nobody chooses, all are published
as choices that were answered, as are those of a request for several.
"""

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tuneloop import tracing, wire
from tuneloop.backoff import Backoff
from tuneloop.bus import Bus, subjects
from tuneloop.errors import NotFound, TuneloopError, Unavailable
from tuneloop.generation import metrics
from tuneloop.policies import Activation
from tuneloop.redaction.redactor import Redactor
from tuneloop.rollouts import FinishReason, Rollout, RolloutSource

logger = logging.getLogger("tuneloop.generation")

CONCURRENCY = 32
"""Events published together: one at a time would wait for the disk each time."""
BUFFER_BYTES = 256 * 1024 * 1024
"""Most that the buffer holds, however few events these are."""
EVENT_TOKENS = 100_000
"""Most completion tokens of the rollouts in one event, about 1 MB; the bus accepts 8 MB."""
PROMPT_TAIL = 200
"""Characters of the prompt that a completion may go on from."""
FIRST_DELAY = 0.2
LONGEST_DELAY = 5.0
"""Seconds before the second and between later attempts."""
CHOICE_SECONDS = 90.0
"""How long candidates are held; longer than the gateway waits for their scores."""
MAX_HELD = 4096
"""Most requests whose candidates are held; beyond that the oldest are published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event on its way to the bus."""

    subject: str
    event_id: str
    data: bytes
    traceparent: str
    """Of the event's cause; empty without tracing."""
    rollouts: int = 0
    """How many it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The candidates of one request."""

    rollouts: Sequence[Rollout]
    timer: asyncio.TimerHandle
    """Publishes them."""


class RolloutPublisher:
    """Buffers events and stores them on the bus in the background."""

    def __init__(self, bus: Bus, *, buffer_size: int, redactor: Redactor | None = None) -> None:
        self.bus = bus
        self.buffer_size = buffer_size
        self.redactor = redactor
        self.examining: set[asyncio.Task[None]] = set()
        self.buffer: deque[Event] = deque()
        self.buffer_bytes = 0
        self.arrived = asyncio.Event()
        self.emptied = asyncio.Event()
        self.emptied.set()
        self.task: asyncio.Task[None] | None = None
        self.held: dict[str, Held] = {}
        """Candidates by the id of their request, oldest first."""

    def publish(self, rollouts: Sequence[Rollout]) -> None:
        """Buffer the rollouts of one request, whose prompt and parameters are stored once.

        Returns at once, and never raises because of the bus.
        """
        usable = [rollout for rollout in rollouts if is_usable(rollout)]
        if self.redactor is None:
            self.buffer_rollouts(usable)
        elif len(self.examining) >= self.buffer_size:
            metrics.rollouts_dropped.labels("overflow").inc(len(usable))
        else:
            task = asyncio.create_task(self.examine(self.redactor, usable))
            self.examining.add(task)
            task.add_done_callback(self.examining.discard)

    async def examine(self, redactor: Redactor, rollouts: Sequence[Rollout]) -> None:
        """Buffer the rollouts whose completions hold no personal data."""
        self.buffer_rollouts([each for each in rollouts if await is_clean(redactor, each)])

    def buffer_rollouts(self, rollouts: Sequence[Rollout]) -> None:
        """Buffer the rollouts of one request."""
        for part in split_group(rollouts):
            first = part[0]
            self.put(
                Event(
                    subject=subjects.rollout_generated(first.policy, first.user_hash),
                    event_id=wire.rollout_event_id(first),
                    data=wire.encode_rollout_generated(*part),
                    traceparent=first.traceparent,
                    rollouts=len(part),
                )
            )

    def hold(self, rollouts: Sequence[Rollout]) -> None:
        """Keep the candidates of one request until one is chosen; publish them if any was cut off.

        Nobody chooses from these: their caller has left.
        """
        if any(rollout.finish_reason is FinishReason.ABORT for rollout in rollouts):
            self.publish(rollouts)
            return
        group_id = rollouts[0].group_id
        if len(self.held) >= MAX_HELD:
            self.release(next(iter(self.held)))
        timer = asyncio.get_running_loop().call_later(CHOICE_SECONDS, self.release, group_id)
        self.held[group_id] = Held(rollouts=rollouts, timer=timer)

    def choose(self, group_id: str, completion_id: str) -> None:
        """Publish a request's candidates, one of which was answered. Raises `NotFound`."""
        if group_id not in self.held:
            raise NotFound(f"no candidates of {group_id[:100]!r} are held", param="group_id")
        self.release(group_id, chosen=completion_id)

    def release(self, group_id: str, chosen: str | None = None) -> None:
        """Publish candidates that are held; without a choice as if all were answered."""
        held = self.held.pop(group_id)
        held.timer.cancel()
        others = [r for r in held.rollouts if r.completion_id != chosen]
        if chosen is not None:
            self.publish([r for r in held.rollouts if r.completion_id == chosen])
            others = [replace(r, source=RolloutSource.CANDIDATE) for r in others]
        self.publish(others)

    def publish_activation(self, activation: Activation) -> None:
        """Buffer the news that a version serves."""
        subject = subjects.weights_activated(activation.policy)
        event_id = wire.activation_event_id(activation)
        data, traceparent = wire.encode_activation(activation), activation.traceparent
        self.put(Event(subject=subject, event_id=event_id, data=data, traceparent=traceparent))

    def put(self, event: Event) -> None:
        """Add an event to the buffer; drop the oldest while it is full."""
        while self.buffer and (
            len(self.buffer) >= self.buffer_size
            or self.buffer_bytes + len(event.data) > BUFFER_BYTES
        ):
            dropped = self.take()
            metrics.rollouts_dropped.labels("overflow").inc(dropped.rollouts)
            logger.error("the bus has been unavailable for too long: dropped %s", dropped.event_id)
        self.buffer.append(event)
        self.buffer_bytes += len(event.data)
        metrics.rollout_buffer_length.set(len(self.buffer))
        self.emptied.clear()
        self.arrived.set()

    def take(self) -> Event:
        """Remove the oldest event from the buffer."""
        event = self.buffer.popleft()
        self.buffer_bytes -= len(event.data)
        return event

    def put_back(self, events: Sequence[Event]) -> None:
        """Return events to the front of the buffer, the oldest first."""
        self.buffer.extendleft(reversed(events))
        self.buffer_bytes += sum(len(event.data) for event in events)

    def start(self) -> None:
        """Start to publish in the background."""
        self.task = asyncio.create_task(self.run(), name="rollout publisher")

    async def stop(self, drain_seconds: float) -> None:
        """Publish what is buffered, for at most `drain_seconds`, and count what is left."""
        for group_id in list(self.held):
            self.release(group_id)
        patience = drain_seconds if self.bus.connected else min(drain_seconds, FIRST_DELAY)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await asyncio.gather(*self.examining)
                await self.emptied.wait()
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
        if self.buffer:
            lost = sum(event.rollouts for event in self.buffer)
            metrics.rollouts_dropped.labels("shutdown").inc(lost)
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
        batch = [self.take() for _ in range(min(CONCURRENCY, len(self.buffer)))]
        try:
            settled = await asyncio.gather(*(self.attempt(event) for event in batch))
        except asyncio.CancelledError:
            self.put_back(batch)
            raise
        self.put_back([event for event, done in zip(batch, settled, strict=True) if not done])
        metrics.rollout_buffer_length.set(len(self.buffer))
        return all(settled)

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
            metrics.rollouts_dropped.labels("refused").inc(event.rollouts)
            logger.error("the bus refused %s: %s", event.event_id, error)
            return True
        metrics.rollouts_published.inc(event.rollouts)
        return True


def is_usable(rollout: Rollout) -> bool:
    """Return whether the learner could use a rollout, and count one that it could not."""
    if all(math.isfinite(logprob) for logprob in rollout.generation_logprobs):
        return True
    # No decoder would ever accept it.
    logger.error("rollout %s has log-probs that are not finite", rollout.completion_id)
    metrics.rollouts_dropped.labels("invalid").inc()
    return False


async def is_clean(redactor: Redactor, rollout: Rollout) -> bool:
    """Return whether a completion holds no personal data, and count one that is not published."""
    before = rollout.prompt_text[-PROMPT_TAIL:]
    sampled = rollout.completion_text
    try:
        clean = await redactor.redact((rollout.reasoning_text, sampled, before, before + sampled))
    except TuneloopError as error:
        metrics.rollouts_dropped.labels("unexamined").inc()
        logger.error("rollout %s is not kept: %s", rollout.completion_id, error.message)
        return False
    kept = {text: clean.get(text, text) for text in (rollout.reasoning_text, sampled)}
    together = clean.get(before, before) + sampled
    if (
        all(text == redacted for text, redacted in kept.items())
        and clean.get(before + sampled, before + sampled) == together
    ):
        return True
    metrics.rollouts_dropped.labels("personal_data").inc()
    return False


def split_group(rollouts: Sequence[Rollout]) -> Iterator[Sequence[Rollout]]:
    """Yield the rollouts of a request in parts that the bus accepts."""
    part: list[Rollout] = []
    tokens = 0
    for rollout in rollouts:
        if part and tokens + len(rollout.completion_token_ids) > EVENT_TOKENS:
            yield part
            part, tokens = [], 0
        part.append(rollout)
        tokens += len(rollout.completion_token_ids)
    if part:
        yield part
