"""A connection to NATS, and what waits for it, ends, whatever its client does when cancelled."""

import asyncio
from types import SimpleNamespace
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


class LosesCancellations(Deaf):
    """A connected client whose answer comes together with a cancellation, which it loses."""

    is_connected = True

    async def request(self, *_: Any, **options: Any) -> SimpleNamespace:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return SimpleNamespace(data=b"stored")
        raise AssertionError


async def test_a_task_ends_whose_cancellation_was_lost_in_a_request() -> None:
    bus = NatsConnection("nats://127.0.0.1:1", name="test")
    bus._client = LosesCancellations()
    asking = asyncio.create_task(bus.request("subject", b"", seconds=60))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_an_answer_at_the_time_limit_is_an_answer() -> None:
    bus = NatsConnection("nats://127.0.0.1:1", name="test")
    bus._client = LosesCancellations()
    assert await bus.request("subject", b"", seconds=0.01) == b"stored"
