"""The event bus: what the loop asks of it, and its two implementations.

`Bus` is the protocol; `tuneloop.bus.jetstream` is the real one, `tuneloop.bus.memory` the double
for tests. One contract suite runs over both.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReceipt:
    """The bus has stored the event durably."""

    stream: str
    sequence: int
    duplicate: bool
    """True when an event with this id was stored before, and this call added nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """An event as the bus holds it."""

    subject: str
    sequence: int
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    """What was stored beside the data: a dead letter's reason and origin, for one."""


class Delivery(Protocol):
    """One event handed to a consumer; it comes again unless acknowledged in time."""

    @property
    def subject(self) -> str: ...
    @property
    def data(self) -> bytes: ...
    @property
    def sequence(self) -> int: ...
    @property
    def deliveries(self) -> int:
        """How often it was handed out, this time included."""
        ...

    async def ack(self) -> None:
        """It has taken effect; do not send it again."""
        ...

    async def nak(self, delay: float = 0.0) -> None:
        """Send it again after `delay` seconds."""
        ...

    async def in_progress(self) -> None:
        """Still at work: start the acknowledgement time afresh."""
        ...


class Consumer(Protocol):
    """A durable pull consumer; several processes may share one as a work queue."""

    async def fetch(self, limit: int, timeout: float) -> list[Delivery]:  # noqa: ASYNC109
        """At most `limit` deliveries; an empty list when none came within `timeout` seconds.

        Raises `Unavailable` while the bus cannot be reached.
        """
        ...

    async def pending(self) -> int:
        """Events not yet acknowledged: the lag."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingEntry:
    """A value of the routing table and the revision to compare when setting it."""

    key: str
    value: bytes
    revision: int


class Bus(Protocol):
    """Durable publish, consume, look-up, purge, and a small compare-and-set table."""

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        event_id: str,
        timeout: float = 5.0,  # noqa: ASYNC109
    ) -> PublishReceipt:
        """Store an event. Safe to repeat with the same `event_id`.

        Raises `Unavailable` when it was not acknowledged in time (it may still have been stored).
        """
        ...

    async def publish_first(
        self,
        subject: str,
        data: bytes,
        *,
        event_id: str,
        unique_filter: str,
        timeout: float = 5.0,  # noqa: ASYNC109
    ) -> PublishReceipt:
        """Store an event only if no event's subject matches `unique_filter` (`*` wildcards).

        Raises `Conflict` when one does, however long ago; `Unavailable` as `publish` does.
        """
        ...

    async def last(self, subject_filter: str) -> StoredEvent | None:
        """The newest event whose subject matches, or None. Raises `Unavailable`."""
        ...

    async def first_after(self, subject_filter: str, sequence: int) -> StoredEvent | None:
        """The oldest event after `sequence` that matches, or None. Raises `Unavailable`."""
        ...

    async def consume(
        self, *, stream: str, durable: str, subjects: Sequence[str], ack_wait: float
    ) -> Consumer:
        """Open a durable consumer (created on first use). Raises `Unavailable`."""
        ...

    async def dead_letter(self, delivery: Delivery, *, consumer: str, reason: str) -> None:
        """Store a delivery that cannot be handled as a dead letter, then acknowledge it."""
        ...

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
        """Store as a dead letter what turned out useless after its events were acknowledged.

        `origin` says where it came from, `user_hash` whom it is about. Safe to repeat with the
        same `event_id`; raises `Unavailable`.
        """
        ...

    async def purge(self, stream: str, subject_filter: str) -> int:
        """Delete matching events; how many there were."""
        ...

    async def routing(self, key: str) -> RoutingEntry | None:
        """The current entry of the routing table, or None. Raises `Unavailable`."""
        ...

    async def set_routing(self, key: str, value: bytes, *, revision: int | None) -> RoutingEntry:
        """Set an entry if it still has `revision` (None: if it does not exist).

        Raises `Conflict` when somebody else was faster, `Unavailable` as above.
        """
        ...

    def watch_routing(self, key: str) -> AsyncIterator[RoutingEntry]:
        """The current entry, if any, then each new one; survives reconnects. Never ends."""
        ...

    @property
    def connected(self) -> bool:
        """Whether the bus can be reached now."""
        ...

    async def close(self) -> None:
        """Flush and disconnect."""
        ...
