"""A connection to NATS ends, whatever its client does with a cancellation."""

import asyncio
from typing import Any

import pytest

from tuneloop.bus import connection
from tuneloop.bus.connection import NatsConnection


class Deaf:
    """A client that never connects, and loses the first cancellation."""

    is_connected = False
    lost = 0

    async def connect(self, **options: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if self.lost:
                raise
            self.lost += 1
            await asyncio.Event().wait()

    async def close(self) -> None: ...


async def test_a_lost_cancellation_does_not_keep_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "Client", Deaf)
    monkeypatch.setattr(connection, "CANCEL_AGAIN_SECONDS", 0.01)
    bus = NatsConnection("nats://127.0.0.1:1", name="test")
    await bus.start(wait=0.01)
    async with asyncio.timeout(5):
        await bus.close()
