"""The event bus: durable events between the processes, and the routing table.

`Bus` is the protocol. `tuneloop.bus.jetstream` implements it on NATS, `tuneloop.bus.memory` is the
double for tests; one contract suite runs over both.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from tuneloop.errors import FailedPrecondition


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
    """Stored beside the data: for a dead letter, its reason and origin."""


class Delivery(Protocol):
    """One event handed to a consumer; redelivered unless acknowledged in time."""

    @property
    def subject(self) -> str: ...
    @property
    def data(self) -> bytes: ...
    @property
    def sequence(self) -> int: ...
    @property
    def stored_time(self) -> datetime:
        """When the bus stored it, by the bus's own clock: later events have later times."""
        ...

    @property
    def deliveries(self) -> int:
        """How often it was delivered, including this time."""
        ...

    async def ack(self) -> None:
        """Acknowledge it: it has taken effect."""
        ...

    async def nak(self, delay: float = 0.0) -> None:
        """Ask for it again after `delay` seconds."""
        ...

    async def in_progress(self) -> None:
        """Restart the acknowledgement time, while work on it continues."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who alone may consume from a durable consumer: what it acknowledges is nowhere else."""

    owner_id: str
    instead_of: str = ""
    """The id of an owner to take it over from; empty: of nobody."""

    def check(self, durable: str, found: str) -> None:
        """Raise `FailedPrecondition` if it belongs to another owner; one without is free."""
        if found not in ("", self.owner_id, self.instead_of):
            raise FailedPrecondition(
                f"the events of {durable} go to another ledger, {found}: a second learner would "
                "take a part of them. If that ledger is lost, start this learner with "
                f"TUNELOOP_LEARNER_TAKE_OVER={found}"
            )


class Consumer(Protocol):
    """A durable pull consumer; several processes may share one as a work queue."""

    async def fetch(self, limit: int, timeout: float) -> list[Delivery]:  # noqa: ASYNC109
        """Return at most `limit` deliveries, or none if none came within `timeout` seconds.

        Raises `Unavailable` while the bus cannot be reached.
        """
        ...

    async def pending(self) -> int:
        """Return the lag: the number of events not yet acknowledged."""
        ...

    async def acknowledged(self) -> int:
        """Return the sequence up to which every event was acknowledged. Raises `Unavailable`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """How many events were deleted."""

    overwritten: int
    """Whose bytes are on no disk of the bus any more."""
    left: int
    """Whose bytes stay on the bus's disk for a while, where only its files can be read."""


EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamUsage:
    """How full a stream is."""

    stored: int
    """Bytes."""
    limit: int
    """Bytes that it may hold; 0 is no limit."""
    time: datetime = EPOCH
    """When it was asked, by the clock that gives events their `stored_time`."""
    created: datetime = EPOCH
    """When the stream was made, by that clock; one that was lost and made again is a new one."""

    @property
    def share(self) -> float:
        """The part of the limit that is used, from 0 to 1."""
        return self.stored / self.limit if self.limit > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingEntry:
    """A value of the routing table and the revision to compare when setting it."""

    key: str
    value: bytes
    revision: int


class Bus(Protocol):
    """Publishes, consumes, looks up and purges events; keeps a small compare-and-set table."""

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

        Raises `Conflict` if one does, however old it is, and `Unavailable` as `publish` does.
        """
        ...

    async def last(self, subject_filter: str) -> StoredEvent | None:
        """Return the newest event whose subject matches, or None. Raises `Unavailable`."""
        ...

    async def first_after(self, subject_filter: str, sequence: int) -> StoredEvent | None:
        """Return the oldest event after `sequence` that matches, or None. Raises `Unavailable`."""
        ...

    async def consume(
        self,
        *,
        stream: str,
        durable: str,
        subjects: Sequence[str],
        ack_wait: float,
        owner: Owner | None = None,
    ) -> Consumer:
        """Open a durable consumer, creating it on first use.

        Raises `Unavailable`, and `FailedPrecondition` if it belongs to another than `owner`;
        fetching from it does too, since a server that lost it may have it from another.
        """
        ...

    async def dead_letter(self, delivery: Delivery, *, consumer: str, reason: str) -> None:
        """Store a delivery that cannot be processed as a dead letter, then acknowledge it."""
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
        """Store data as a dead letter whose events were already acknowledged.

        `origin` says where it came from, `user_hash` which user it is about. Safe to repeat with
        the same `event_id`. Raises `Unavailable`.
        """
        ...

    async def purge(self, stream: str, subject_filter: str, *, up_to: int | None = None) -> int:
        """Delete matching events, with `up_to` only up to that sequence; return their number."""
        ...

    async def erase(self, stream: str, filters: Sequence[str], *, seconds: float) -> Erased:
        """Delete events that match a filter and overwrite their bytes, for at most `seconds`.

        Has the bytes of what was deleted earlier leave the disk too, as soon as the bus can.
        Raises `NotFound` and `Unavailable`; safe to repeat.
        """
        ...

    async def usage(self, stream: str) -> StreamUsage:
        """Return how full a stream is. Raises `Unavailable`."""
        ...

    async def routing(self, key: str) -> RoutingEntry | None:
        """Return the current entry of the routing table, or None. Raises `Unavailable`."""
        ...

    async def set_routing(self, key: str, value: bytes, *, revision: int | None) -> RoutingEntry:
        """Set an entry if it still has `revision` (None: if it does not exist).

        Raises `Conflict` if another process changed it first, and `Unavailable`.
        """
        ...

    def watch_routing(self, key: str) -> AsyncIterator[RoutingEntry]:
        """Yield the current entry, if any, then each new one, across reconnects. Never ends."""
        ...

    @property
    def connected(self) -> bool:
        """Whether the bus can be reached now."""
        ...

    async def close(self) -> None:
        """Flush and disconnect."""
        ...
