"""Streams to files and back, with what their consumers had done."""

from pathlib import Path

import pytest
from conftest import NatsServer
from support.ports import free_port

from tuneloop.bus import snapshots
from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.bus.subjects import FEEDBACK, ROUTING_BUCKET, feedback
from tuneloop.errors import Conflict, CorruptData, NotFound


async def publish(bus: JetStreamBus, numbers: range) -> None:
    for number in numbers:
        subject = feedback("tuneloop", "thumb", "u1", f"f{number}")
        await bus.publish(subject, bytes([number]) * 2000, event_id=f"f{number}")


async def taken(bus: JetStreamBus, count: int) -> list[int]:
    consumer = await bus.consume(
        stream=FEEDBACK, durable="d", subjects=["tuneloop.v1.*.feedback.>"], ack_wait=30
    )
    deliveries = await consumer.fetch(count, 5.0)
    for delivery in deliveries:
        await delivery.ack()
    return [delivery.data[0] for delivery in deliveries]


async def test_streams_come_back_with_their_consumers(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    bus = await JetStreamBus.connect(nats_server.url)
    await publish(bus, range(120))
    assert await taken(bus, 50) == list(range(50))
    await bus.connection.client.flush()
    names = await snapshots.stream_names(bus.connection)
    assert {FEEDBACK, f"KV_{ROUTING_BUCKET}"} <= set(names)
    for name in names:
        await snapshots.snapshot(bus.connection, name, tmp_path / name)
    await publish(bus, range(120, 130))
    await bus.close()

    elsewhere = NatsServer(data_dir=tmp_path / "elsewhere", port=free_port())
    elsewhere.data_dir.mkdir()
    elsewhere.start()
    try:
        other = await JetStreamBus.connect(elsewhere.url)
        counts = {n: await snapshots.restore(other.connection, tmp_path / n) for n in names}
        assert counts[FEEDBACK] == 120
        assert await taken(other, 500) == list(range(50, 120))
        with pytest.raises(Conflict):
            await snapshots.restore(other.connection, tmp_path / FEEDBACK)
        await other.close()
    finally:
        elsewhere.kill()


async def test_what_is_not_there_is_said(nats_server: NatsServer, tmp_path: Path) -> None:
    bus = await JetStreamBus.connect(nats_server.url)
    with pytest.raises(NotFound):
        await snapshots.snapshot(bus.connection, "NOTHING", tmp_path / "nothing")
    with pytest.raises(CorruptData):
        await snapshots.restore(bus.connection, tmp_path / "absent")
    await bus.close()
