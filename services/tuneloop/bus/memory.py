"""The event bus in memory: the test double of `JetStreamBus`, with the same behaviour.

`go_down` makes every method raise `Unavailable`, like a stopped server; `come_back` ends that.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tuneloop.bus import (
    EPOCH,
    Delivery,
    Erased,
    Owner,
    PublishReceipt,
    RoutingEntry,
    StoredEvent,
    StreamUsage,
    metrics,
    subjects,
)
from tuneloop.bus.subjects import matches, stream_of
from tuneloop.errors import Conflict, NotFound, Unavailable


@dataclass(slots=True)
class MemoryStream:
    """Events in order, when each was stored, and the ids seen."""

    created: datetime = EPOCH
    events: list[StoredEvent] = field(default_factory=list)
    sequence: int = 0
    times: dict[int, datetime] = field(default_factory=dict)
    sequence_of_id: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class ConsumerProgress:
    """The state of one event for one consumer."""

    deliveries: int = 0
    due: float = 0.0
    """Not delivered before this time of the loop's clock."""


@dataclass(slots=True)
class Durable:
    """What the bus keeps of a durable consumer."""

    stream: str
    subjects: tuple[str, ...]
    ack_wait: float
    owner_id: str = ""
    acknowledged: set[int] = field(default_factory=set)
    progress: dict[int, ConsumerProgress] = field(default_factory=dict)


class MemoryDelivery:
    """One event handed to a consumer."""

    def __init__(self, bus: "MemoryBus", durable: Durable, event: StoredEvent) -> None:
        self._bus = bus
        self._durable = durable
        self.subject, self.data, self.sequence = event.subject, event.data, event.sequence
        self.deliveries = durable.progress[event.sequence].deliveries
        self.stored_time = bus.streams[durable.stream].times[event.sequence]

    async def ack(self) -> None:
        """Acknowledge it."""
        self._bus.check()
        self._durable.acknowledged.add(self.sequence)

    async def nak(self, delay: float = 0.0) -> None:
        """Send it again after `delay` seconds."""
        self._bus.check()
        self._durable.progress[self.sequence].due = now() + delay
        self._bus.notify()

    async def in_progress(self) -> None:
        """Restart the acknowledgement time."""
        self._bus.check()
        self._durable.progress[self.sequence].due = now() + self._durable.ack_wait


class MemoryConsumer:
    """A durable pull consumer."""

    def __init__(self, bus: "MemoryBus", durable: Durable) -> None:
        self._bus = bus
        self._durable = durable

    async def fetch(self, limit: int, timeout: float) -> list[Delivery]:  # noqa: ASYNC109
        """At most `limit` deliveries. Raises `Unavailable`."""
        deadline = now() + timeout
        while True:
            self._bus.check()
            due = [event for event in self._open() if self._due(event) <= now()][:limit]
            remaining = deadline - now()
            if due or remaining <= 0:
                return [self._hand_out(event) for event in due]
            wake = min([self._due(event) - now() for event in self._open()], default=remaining)
            await self._bus.changed(min(max(wake, 0.001), remaining))

    async def pending(self) -> int:
        """Events not yet acknowledged."""
        self._bus.check()
        return len(self._open())

    async def acknowledged(self) -> int:
        """The sequence up to which all is acknowledged."""
        self._bus.check()
        stream = self._bus.streams[self._durable.stream]
        return min([event.sequence - 1 for event in self._open()], default=stream.sequence)

    def _open(self) -> list[StoredEvent]:
        return [
            event
            for event in self._bus.streams[self._durable.stream].events
            if event.sequence not in self._durable.acknowledged
            and any(matches(wanted, event.subject) for wanted in self._durable.subjects)
        ]

    def _due(self, event: StoredEvent) -> float:
        progress = self._durable.progress.get(event.sequence)
        return 0.0 if progress is None else progress.due

    def _hand_out(self, event: StoredEvent) -> MemoryDelivery:
        progress = self._durable.progress.setdefault(event.sequence, ConsumerProgress())
        progress.deliveries += 1
        progress.due = now() + self._durable.ack_wait
        return MemoryDelivery(self._bus, self._durable, event)


class MemoryBus:
    """`Bus` in the memory of one event loop."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.streams = {name: MemoryStream() for name in subjects.stream_subjects}
        self.limits: dict[str, int] = {}
        self.connected = True
        self._durables: dict[tuple[str, str], Durable] = {}
        self._routing: dict[str, RoutingEntry] = {}
        self._revision = 0
        self._change = asyncio.Event()

    def go_down(self) -> None:
        """Make every method raise `Unavailable` from now on."""
        self.connected = False
        self.notify()

    def come_back(self) -> None:
        """End `go_down`; nothing stored is lost."""
        self.connected = True
        self.notify()

    def check(self) -> None:
        """Raise `Unavailable` while the bus is down."""
        if not self.connected:
            raise Unavailable("the event bus cannot be reached", retry_after=2.0)

    def notify(self) -> None:
        """Wake everything that waits for a change."""
        self._change.set()
        self._change = asyncio.Event()

    async def changed(self, seconds: float) -> None:
        """Return at the next change, or after `seconds`."""
        change = self._change
        try:
            async with asyncio.timeout(seconds):
                await change.wait()
        except TimeoutError:
            return

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        event_id: str,
        timeout: float = 5.0,  # noqa: ASYNC109
    ) -> PublishReceipt:
        """Store an event; see `Bus.publish`."""
        return self._store(subject, data, event_id, {})

    async def publish_first(
        self,
        subject: str,
        data: bytes,
        *,
        event_id: str,
        unique_filter: str,
        timeout: float = 5.0,  # noqa: ASYNC109
    ) -> PublishReceipt:
        """Store an event unless one matches `unique_filter`; see `Bus.publish_first`."""
        self.check()
        known = event_id in self.streams[stream_of(subject)].sequence_of_id
        if known or await self.last(unique_filter) is not None:
            raise Conflict("an event with this id exists", param="id")
        return self._store(subject, data, event_id, {})

    async def last(self, subject_filter: str) -> StoredEvent | None:
        """The newest event that matches; see `Bus.last`."""
        self.check()
        events = reversed(self.streams[stream_of(subject_filter)].events)
        return next((event for event in events if matches(subject_filter, event.subject)), None)

    async def first_after(self, subject_filter: str, sequence: int) -> StoredEvent | None:
        """The oldest event after `sequence` that matches; see `Bus.first_after`."""
        self.check()
        later = (e for e in self.streams[stream_of(subject_filter)].events if e.sequence > sequence)
        return next((event for event in later if matches(subject_filter, event.subject)), None)

    async def consume(
        self,
        *,
        stream: str,
        durable: str,
        subjects: Sequence[str],
        ack_wait: float,
        owner: Owner | None = None,
    ) -> MemoryConsumer:
        """Open a durable consumer; see `Bus.consume`."""
        # Created with 0, so that the first one counts as an increase.
        metrics.dead_letters.labels(durable)
        self.check()
        known = self._durables.setdefault(
            (stream, durable), Durable(stream=stream, subjects=(), ack_wait=ack_wait)
        )
        if owner is not None:
            owner.check(durable, known.owner_id)
            known.owner_id = owner.owner_id
        known.subjects, known.ack_wait = tuple(subjects), ack_wait
        return MemoryConsumer(self, known)

    async def dead_letter(self, delivery: Delivery, *, consumer: str, reason: str) -> None:
        """Store a delivery as a dead letter, then acknowledge it."""
        headers = {
            "Tuneloop-Reason": " ".join(reason.split()),
            "Tuneloop-Subject": delivery.subject,
            "Tuneloop-Sequence": str(delivery.sequence),
            "Tuneloop-Deliveries": str(delivery.deliveries),
        }
        event_id = f"dead-{consumer}-{stream_of(delivery.subject)}-{delivery.sequence}"
        subject = subjects.dead_letter(consumer, subjects.user_in(delivery.subject))
        receipt = self._store(subject, delivery.data, event_id, headers)
        await delivery.ack()
        if not receipt.duplicate:
            metrics.dead_letters.labels(consumer).inc()

    async def bury(
        self,
        data: bytes,
        *,
        consumer: str,
        origin: str,
        reason: str,
        event_id: str,
        user_hash: str = "",
    ) -> None:
        """Store a dead letter; see `Bus.bury`."""
        headers = {"Tuneloop-Reason": " ".join(reason.split()), "Tuneloop-Origin": origin}
        subject = subjects.dead_letter(consumer, user_hash)
        receipt = self._store(subject, data, f"dead-{event_id}", headers)
        if not receipt.duplicate:
            metrics.dead_letters.labels(consumer).inc()

    async def purge(self, stream: str, subject_filter: str, *, up_to: int | None = None) -> int:
        """Delete matching events; how many there were."""
        self.check()
        if stream not in self.streams:
            raise NotFound(f"no stream {stream!r}", param="stream")
        events = self.streams[stream].events
        last = self.streams[stream].sequence if up_to is None else up_to
        kept = [e for e in events if e.sequence > last or not matches(subject_filter, e.subject)]
        self.streams[stream].events = kept
        return len(events) - len(kept)

    async def erase(self, stream: str, filters: Sequence[str], *, seconds: float) -> Erased:
        """Delete matching events; see `Bus.erase`."""
        return Erased(overwritten=sum([await self.purge(stream, each) for each in filters]), left=0)

    async def usage(self, stream: str) -> StreamUsage:
        """How full a stream is, with `limits` that a test has set."""
        self.check()
        found, limit = self.streams[stream], self.limits.get(stream, 0)
        stored = sum(len(event.data) for event in found.events)
        moment = datetime.fromtimestamp(self.clock(), UTC)
        return StreamUsage(stored=stored, limit=limit, time=moment, created=found.created)

    def lose_routing(self) -> None:
        """Lose the routing table, as a server does whose disk was replaced."""
        self._routing.clear()

    async def routing(self, key: str) -> RoutingEntry | None:
        """The current entry of the routing table, or None."""
        self.check()
        return self._routing.get(key)

    async def set_routing(self, key: str, value: bytes, *, revision: int | None) -> RoutingEntry:
        """Set an entry if it still has `revision`; see `Bus.set_routing`."""
        self.check()
        current = self._routing.get(key)
        if (current.revision if current else 0) != (revision or 0):
            raise Conflict(f"{key} was changed by another process", param="revision")
        self._revision += 1
        entry = RoutingEntry(key=key, value=value, revision=self._revision)
        self._routing[key] = entry
        self.notify()
        return entry

    async def watch_routing(self, key: str) -> AsyncIterator[RoutingEntry]:
        """The current entry, if any, then each new one."""
        revision = 0
        while True:
            change = self._change
            entry = self._routing.get(key) if self.connected else None
            if entry is not None and entry.revision != revision:
                revision = entry.revision
                yield entry
            else:
                await change.wait()

    async def close(self) -> None:
        """Do nothing: nothing is open."""

    def _store(
        self, subject: str, data: bytes, event_id: str, headers: dict[str, str]
    ) -> PublishReceipt:
        self.check()
        name = stream_of(subject)
        stream = self.streams[name]
        known = stream.sequence_of_id.get(event_id)
        if known is not None:
            return PublishReceipt(stream=name, sequence=known, duplicate=True)
        stream.sequence += 1
        stream.sequence_of_id[event_id] = stream.sequence
        event = StoredEvent(subject=subject, sequence=stream.sequence, data=data, headers=headers)
        stream.events.append(event)
        stream.times[stream.sequence] = datetime.fromtimestamp(self.clock(), UTC)
        self.notify()
        return PublishReceipt(stream=name, sequence=stream.sequence, duplicate=False)


def now() -> float:
    """Return the time of the running loop's clock, in seconds."""
    return asyncio.get_running_loop().time()
