"""The event bus on NATS JetStream.

It connects in the background and keeps trying; while the server is away every method raises
`Unavailable`. Streams are created when they are first needed. Unlike nats-py's own helpers, nothing
here waits for an answer after the connection is lost.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from secrets import token_hex
from typing import Any

from tuneloop.bus import (
    Delivery,
    Erased,
    Owner,
    PublishReceipt,
    RoutingEntry,
    StoredEvent,
    StreamUsage,
    erasure,
    metrics,
    subjects,
)
from tuneloop.bus.access import Access
from tuneloop.bus.connection import NatsConnection
from tuneloop.bus.pull import JetStreamDelivery, Puller
from tuneloop.bus.streams import (
    NANOSECONDS,
    ROUTING_STREAM,
    ApiError,
    StreamLimits,
    consumer_state,
    create_consumer,
    ensure_streams,
    last_message,
    one_message,
    purge_stream,
    refusal_error,
    stream_usage,
)
from tuneloop.bus.subjects import stream_of
from tuneloop.errors import Conflict, Unavailable

TIMEOUT_SECONDS = 5.0
WATCH_PULL_SECONDS = 5.0
WATCH_RETRY_SECONDS = 0.25
WATCH_INACTIVE_SECONDS = 60.0
MAX_ACK_PENDING = 16_384
REASON_CHARACTERS = 1_000


class JetStreamConsumer:
    """A durable pull consumer."""

    def __init__(
        self,
        bus: "JetStreamBus",
        stream: str,
        configuration: dict[str, Any],
        owner: Owner | None = None,
    ) -> None:
        self._bus = bus
        self._stream = stream
        self._configuration = configuration
        self._name: str = configuration["durable_name"]
        self._owner = owner
        self._puller = Puller(bus.connection, stream, self.ensure)

    async def ensure(self) -> str:
        """Create the consumer on the server if it is missing; return its name."""
        await self._bus.create_consumer(self._stream, self._configuration, self._owner)
        return self._name

    async def fetch(self, limit: int, timeout: float) -> list[Delivery]:  # noqa: ASYNC109
        """At most `limit` deliveries. Raises `Unavailable`."""
        messages = await self._puller.fetch(limit, timeout)
        return [JetStreamDelivery(self._bus.connection, message) for message in messages]

    async def pending(self) -> int:
        """Events not yet acknowledged. Raises `Unavailable`."""
        state = await self._state()
        return int(state["num_pending"]) + int(state["num_ack_pending"])

    async def acknowledged(self) -> int:
        """The sequence up to which all is acknowledged. Raises `Unavailable`."""
        return int((await self._state())["ack_floor"]["stream_seq"])

    async def _state(self) -> Any:
        return await consumer_state(self._bus.connection, self._stream, self._name)


class JetStreamBus:
    """`Bus` on JetStream; open it with `connect`."""

    def __init__(
        self, connection: NatsConnection, limits: StreamLimits | None, replicas: int = 1
    ) -> None:
        self.connection = connection
        self._limits = limits
        self._replicas = replicas
        self._prepared_epoch = -1
        self._preparing = asyncio.Lock()

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        name: str = "tuneloop",
        access: Access | None = None,
        replicas: int = 1,
        limits: StreamLimits | None = None,
        wait: float = 2.0,
    ) -> "JetStreamBus":
        """Connect to `url` (several, separated by commas, for a cluster).

        Returns after `wait` seconds even if no server could be reached, and keeps trying.
        `replicas` is how many copies of each stream a cluster keeps. Raises `SettingsError` for a
        malformed URL, and for files of `access` that cannot be used.
        """
        connection = NatsConnection(url, name=name, access=access)
        await connection.start(wait)
        return cls(connection, limits, replicas)

    @property
    def connected(self) -> bool:
        """Whether the server can be reached now."""
        return self.connection.connected

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        event_id: str,
        timeout: float = TIMEOUT_SECONDS,  # noqa: ASYNC109
    ) -> PublishReceipt:
        """Store an event; see `Bus.publish`."""
        return await self._store(subject, data, {"Nats-Msg-Id": event_id}, timeout)

    async def publish_first(
        self,
        subject: str,
        data: bytes,
        *,
        event_id: str,
        unique_filter: str,
        timeout: float = TIMEOUT_SECONDS,  # noqa: ASYNC109
    ) -> PublishReceipt:
        """Store an event unless one matches `unique_filter`; see `Bus.publish_first`."""
        headers = {
            "Nats-Msg-Id": event_id,
            "Nats-Expected-Last-Subject-Sequence": "0",
            "Nats-Expected-Last-Subject-Sequence-Subject": unique_filter,
        }
        receipt = await self._store(subject, data, headers, timeout)
        if receipt.duplicate:
            # A duplicate by its id: the event exists, so this was not the first.
            raise Conflict(f"an event with id {event_id!r} exists", param="id")
        return receipt

    async def last(self, subject_filter: str) -> StoredEvent | None:
        """The newest event that matches; see `Bus.last`."""
        return await self._one(subject_filter, {"last_by_subj": subject_filter})

    async def first_after(self, subject_filter: str, sequence: int) -> StoredEvent | None:
        """The oldest event after `sequence` that matches; see `Bus.first_after`."""
        return await self._one(
            subject_filter, {"seq": sequence + 1, "next_by_subj": subject_filter}
        )

    async def _one(self, subject_filter: str, body: dict[str, Any]) -> StoredEvent | None:
        stream = stream_of(subject_filter)
        await self._prepare()
        found = await one_message(self.connection, stream, body, TIMEOUT_SECONDS)
        if found is None:
            return None
        subject, sequence, data, headers = found
        return StoredEvent(subject=subject, sequence=sequence, data=data, headers=headers)

    async def consume(
        self,
        *,
        stream: str,
        durable: str,
        subjects: Sequence[str],
        ack_wait: float,
        owner: Owner | None = None,
    ) -> JetStreamConsumer:
        """Open a durable consumer; see `Bus.consume`."""
        # Created with 0, so that the first one counts as an increase.
        metrics.dead_letters.labels(durable)
        configuration = {
            "durable_name": durable,
            "name": durable,
            "ack_policy": "explicit",
            "deliver_policy": "all",
            "replay_policy": "instant",
            "ack_wait": int(ack_wait * NANOSECONDS),
            "max_ack_pending": MAX_ACK_PENDING,
            "filter_subjects": list(subjects),
        }
        consumer = JetStreamConsumer(self, stream, configuration, owner)
        await consumer.ensure()
        return consumer

    async def dead_letter(self, delivery: Delivery, *, consumer: str, reason: str) -> None:
        """Store a delivery as a dead letter, then acknowledge it. Raises `Unavailable`."""
        stream = stream_of(delivery.subject)
        headers = {
            "Nats-Msg-Id": f"dead-{consumer}-{stream}-{delivery.sequence}",
            "Tuneloop-Reason": " ".join(reason.split())[:REASON_CHARACTERS],
            "Tuneloop-Subject": delivery.subject,
            "Tuneloop-Sequence": str(delivery.sequence),
            "Tuneloop-Deliveries": str(delivery.deliveries),
        }
        subject = subjects.dead_letter(consumer, subjects.user_in(delivery.subject))
        receipt = await self._store(subject, delivery.data, headers, TIMEOUT_SECONDS)
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
        """Store a dead letter; see `Bus.bury`. Raises `Unavailable`."""
        headers = {
            "Nats-Msg-Id": f"dead-{event_id}",
            "Tuneloop-Reason": " ".join(reason.split())[:REASON_CHARACTERS],
            "Tuneloop-Origin": origin,
        }
        subject = subjects.dead_letter(consumer, user_hash)
        receipt = await self._store(subject, data, headers, TIMEOUT_SECONDS)
        if not receipt.duplicate:
            metrics.dead_letters.labels(consumer).inc()

    async def purge(self, stream: str, subject_filter: str, *, up_to: int | None = None) -> int:
        """Delete matching events; see `Bus.purge`. Raises `Unavailable`."""
        await self._prepare()
        return await purge_stream(self.connection, stream, subject_filter, up_to)

    async def erase(self, stream: str, filters: Sequence[str], *, seconds: float) -> Erased:
        """Delete matching events and overwrite their bytes; see `Bus.erase`."""
        await self._prepare()
        return await erasure.erase(self.connection, stream, filters, seconds)

    async def usage(self, stream: str) -> StreamUsage:
        """How full a stream is. Raises `Unavailable`."""
        await self._prepare()
        return await stream_usage(self.connection, stream)

    async def routing(self, key: str) -> RoutingEntry | None:
        """The current entry of the routing table, or None. Raises `Unavailable`."""
        await self._prepare()
        subject = subjects.routing(key)
        found = await last_message(self.connection, ROUTING_STREAM, subject, TIMEOUT_SECONDS)
        return None if found is None else RoutingEntry(key=key, value=found[2], revision=found[1])

    async def set_routing(self, key: str, value: bytes, *, revision: int | None) -> RoutingEntry:
        """Set an entry if it still has `revision`; see `Bus.set_routing`."""
        headers = {"Nats-Expected-Last-Subject-Sequence": str(revision or 0)}
        try:
            receipt = await self._store(subjects.routing(key), value, headers, TIMEOUT_SECONDS)
        except Conflict as error:
            raise Conflict(f"{key} was changed by another process", param="revision") from error
        return RoutingEntry(key=key, value=value, revision=receipt.sequence)

    async def watch_routing(self, key: str) -> AsyncIterator[RoutingEntry]:
        """The current entry, if any, then each new one; survives reconnects."""
        puller = Puller(self.connection, ROUTING_STREAM, lambda: self._create_watcher(key))
        revision: int | None = None
        try:
            while True:
                try:
                    messages = await puller.fetch(64, WATCH_PULL_SECONDS)
                except Unavailable:
                    await asyncio.sleep(WATCH_RETRY_SECONDS)
                    continue
                for message in messages:
                    # A consumer that was created again starts with the newest entry.
                    if message.metadata.sequence.stream != revision:
                        revision = int(message.metadata.sequence.stream)
                        yield RoutingEntry(key=key, value=bytes(message.data), revision=revision)
        finally:
            await puller.close()

    async def close(self) -> None:
        """Flush and disconnect."""
        await self.connection.close()

    async def create_consumer(
        self, stream: str, configuration: dict[str, Any], owner: Owner | None = None
    ) -> None:
        """Create a consumer, or update its configuration; see `Bus.consume`."""
        await self._prepare()
        try:
            await create_consumer(self.connection, stream, configuration, owner, TIMEOUT_SECONDS)
        except ApiError as error:
            name = configuration["name"]
            raise self.connection.unavailable(f"refused consumer {name}: {error}") from error

    async def _create_watcher(self, key: str) -> str:
        name = f"watch-{token_hex(8)}"
        configuration = {
            "name": name,
            "ack_policy": "none",
            "deliver_policy": "last_per_subject",
            "replay_policy": "instant",
            "filter_subjects": [subjects.routing(key)],
            "inactive_threshold": int(WATCH_INACTIVE_SECONDS * NANOSECONDS),
            "mem_storage": True,
            "num_replicas": 1,
        }
        await self.create_consumer(ROUTING_STREAM, configuration)
        return name

    async def _prepare(self) -> None:
        """Create the streams, once per connection: the server may be a different one now."""
        if self._prepared_epoch == self.connection.epoch:
            return
        async with self._preparing:
            epoch = self.connection.epoch
            if self._prepared_epoch != epoch:
                await ensure_streams(self.connection, self._limits, self._replicas)
                self._prepared_epoch = epoch

    async def _store(
        self, subject: str, data: bytes, headers: Mapping[str, str], seconds: float
    ) -> PublishReceipt:
        await self._prepare()
        answer = json.loads(
            await self.connection.request(subject, data, seconds=seconds, headers=headers)
        )
        if "error" in answer:
            raise refusal_error(ApiError(answer["error"]))
        return PublishReceipt(
            stream=answer["stream"],
            sequence=int(answer["seq"]),
            duplicate=bool(answer.get("duplicate", False)),
        )
