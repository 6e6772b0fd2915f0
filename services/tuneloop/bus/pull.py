"""Pulls from a JetStream consumer: what is there now, or else the first message to arrive.

A fetch makes three requests at most: a no-wait pull of `limit`; if that brought nothing, a pull of
one that waits until the timeout; then a no-wait pull of the rest. It never requests more than it
returns, so that no event waits in one process's buffer while another process is idle.
"""

import asyncio
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import nats.errors

from tuneloop.bus.connection import NatsConnection
from tuneloop.bus.streams import API, NANOSECONDS

logger = logging.getLogger("tuneloop.bus")

ENDED = {"404", "408"}
GRACE_SECONDS = 1.0


class Puller:
    """Sends pull requests, whose messages arrive in an inbox."""

    def __init__(
        self, connection: NatsConnection, stream: str, ensure: Callable[[], Awaitable[str]]
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._ensure = ensure
        """Creates the consumer on the server if it is missing; returns its name."""
        self._consumer = ""
        self._client: Any = None
        self._epoch = -1
        self._subscription: Any = None
        self._inbox = ""
        self._requests = 0
        self._messages: deque[Any] = deque()
        self._status: tuple[str, str] | None = None
        self._arrived = asyncio.Event()
        self._lock = asyncio.Lock()

    @property
    def consumer(self) -> str:
        """The consumer's name on the server."""
        return self._consumer

    async def fetch(self, limit: int, seconds: float) -> list[Any]:
        """Return at most `limit` messages, none if none came in time. Raises `Unavailable`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        async with self._lock:
            await self._prepare()
            if not self._messages:
                await self._pull(limit, 0.0)
            remaining = deadline - loop.time()
            if not self._messages and remaining > 0.01:
                await self._pull(1, remaining)
                if self._messages and limit > 1:
                    await self._pull(limit, 0.0)
            return [self._messages.popleft() for _ in range(min(limit, len(self._messages)))]

    async def close(self) -> None:
        """Close the inbox."""
        if self._subscription is not None and not self._client.is_closed:
            await self._subscription.unsubscribe()

    async def _prepare(self) -> None:
        client = self._connection.client
        if self._epoch != self._connection.epoch:
            epoch = self._connection.epoch
            self._consumer = await self._ensure()
            self._epoch = epoch
        if self._client is not client:
            self._messages.clear()
            self._inbox = client.new_inbox()
            async with self._connection.waiting(5.0):
                self._subscription = await client.subscribe(f"{self._inbox}.*", cb=self._receive)
            self._client = client

    async def _receive(self, message: Any) -> None:
        status = (message.headers or {}).get("Status") if not message.reply else None
        if status is None:
            self._messages.append(message)
        elif message.subject == f"{self._inbox}.{self._requests}":
            self._status = (status, (message.headers or {}).get("Description", ""))
        self._arrived.set()

    async def _pull(self, limit: int, seconds: float) -> None:
        """Request what fills the buffer to `limit`; wait `seconds` if there is nothing."""
        self._requests += 1
        self._status = None
        request: dict[str, Any] = {"batch": limit - len(self._messages)}
        if seconds:
            request["expires"] = int(seconds * NANOSECONDS)
        else:
            request["no_wait"] = True
        subject = f"{API}.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
        reply = f"{self._inbox}.{self._requests}"
        give_up = asyncio.get_running_loop().time() + seconds + GRACE_SECONDS
        async with self._connection.waiting(seconds + 2 * GRACE_SECONDS, subject) as client:
            await client.publish(subject, json.dumps(request).encode(), reply=reply)
            while len(self._messages) < limit and self._status is None:
                self._arrived.clear()
                try:
                    async with asyncio.timeout_at(give_up):
                        await self._arrived.wait()
                except TimeoutError:
                    if self._connection.connected:
                        return
                    raise
        await self._handle_status()

    async def _handle_status(self) -> None:
        """React to the status with which the server ended the pull."""
        if self._status is None or self._status[0] in ENDED:
            return
        code, description = self._status
        lost = code == "503" or "Deleted" in description or "not found" in description.lower()
        if lost:
            logger.warning(
                "consumer %s of %s is gone; creating it again", self._consumer, self._stream
            )
            self._epoch = -1
            await self._prepare()
        # Whatever the reason, do not retry in a tight loop.
        await asyncio.sleep(0.1)


class JetStreamDelivery:
    """One message of a consumer."""

    __slots__ = ("_connection", "_message", "_metadata")

    def __init__(self, connection: NatsConnection, message: Any) -> None:
        self._connection = connection
        self._message = message
        self._metadata = message.metadata

    @property
    def subject(self) -> str:
        """Where it was published."""
        return str(self._message.subject)

    @property
    def data(self) -> bytes:
        """The event."""
        return bytes(self._message.data)

    @property
    def sequence(self) -> int:
        """Its place in the stream."""
        return int(self._metadata.sequence.stream)

    @property
    def stream(self) -> str:
        """The stream that holds it."""
        return str(self._metadata.stream)

    @property
    def stored_time(self) -> datetime:
        """When the server stored it, by its clock."""
        stored: datetime = self._metadata.timestamp
        return stored

    @property
    def deliveries(self) -> int:
        """How often it was delivered, including this time."""
        return int(self._metadata.num_delivered)

    async def ack(self) -> None:
        """Acknowledge it. Raises `Unavailable`; then it will be delivered again."""
        await self._reply(b"+ACK")

    async def nak(self, delay: float = 0.0) -> None:
        """Ask for it again after `delay` seconds."""
        body = json.dumps({"delay": int(delay * NANOSECONDS)}) if delay else ""
        await self._reply(f"-NAK {body}".strip().encode())

    async def in_progress(self) -> None:
        """Restart the acknowledgement time."""
        await self._reply(b"+WPI")

    async def _reply(self, verdict: bytes) -> None:
        try:
            await self._connection.client.publish(self._message.reply, verdict)
        except nats.errors.Error as error:
            raise self._connection.unavailable(f"failed: {error}") from error
