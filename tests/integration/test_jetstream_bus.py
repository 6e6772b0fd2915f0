"""What only the real event bus can show: absent servers, full streams, lost consumers, keys."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from conftest import NatsServer
from support.waiting import until_available

from tuneloop.bus import subjects
from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.bus.streams import ROUTING_STREAM, StreamLimits, call_api
from tuneloop.errors import InvalidRequest, SettingsError, Unavailable

ROLLOUT = subjects.rollout_generated("tuneloop", "user1")
FEEDBACK = subjects.feedback("tuneloop", "thumb", "user1", "id1")


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[JetStreamBus]:
    bus = await JetStreamBus.connect(nats_server.url)
    yield bus
    await bus.close()


async def test_it_starts_without_a_server_and_connects_when_there_is_one(
    nats_server: NatsServer,
) -> None:
    nats_server.kill()
    bus = await JetStreamBus.connect(nats_server.url, wait=0.1)
    assert not bus.connected
    with pytest.raises(Unavailable) as refused:
        await bus.publish(ROLLOUT, b"x", event_id="x")
    assert refused.value.retry_after is not None
    nats_server.start()
    receipt = await until_available(lambda: bus.publish(ROLLOUT, b"x", event_id="x"))
    assert receipt.sequence == 1
    await bus.close()


async def test_closing_while_there_is_no_server_ends(nats_server: NatsServer) -> None:
    nats_server.kill()
    bus = await JetStreamBus.connect(nats_server.url, wait=0.1)
    async with asyncio.timeout(10):
        await bus.close()


@pytest.mark.parametrize("url", ["localhost:4222", "http://127.0.0.1:4222", "nats://"])
async def test_a_malformed_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(SettingsError, match="nats_url"):
        await JetStreamBus.connect(url)


async def test_a_full_feedback_stream_refuses_and_keeps_what_it_has(
    nats_server: NatsServer,
) -> None:
    bus = await JetStreamBus.connect(nats_server.url, limits=StreamLimits(feedback_bytes=20_000))
    await bus.publish(FEEDBACK, b"first", event_id="first")

    async def fill() -> None:
        for number in range(100):
            subject = subjects.feedback("tuneloop", "thumb", "user1", f"more{number}")
            await bus.publish(subject, b"x" * 1000, event_id=f"more{number}")

    with pytest.raises(Unavailable, match="maximum bytes") as refused:
        await fill()
    assert refused.value.retry_after is not None
    stored = await bus.last(subjects.feedback_with_id("id1"))
    assert stored is not None
    assert stored.data == b"first"
    await bus.close()


async def test_full_rollouts_make_room_by_dropping_the_oldest(nats_server: NatsServer) -> None:
    bus = await JetStreamBus.connect(nats_server.url, limits=StreamLimits(rollout_bytes=20_000))
    for number in range(50):
        receipt = await bus.publish(ROLLOUT, b"x" * 1000, event_id=str(number))
    assert receipt.sequence == 50
    await bus.close()


async def test_limits_given_later_change_the_stream_and_absent_ones_do_not(
    nats_server: NatsServer, bus: JetStreamBus
) -> None:
    async def size() -> int:
        info = await call_api(bus.connection, f"STREAM.INFO.{subjects.FEEDBACK}", {}, 5.0)
        return int(info["config"]["max_bytes"])

    await bus.publish(FEEDBACK, b"x", event_id="x")
    other = await JetStreamBus.connect(nats_server.url, limits=StreamLimits(feedback_bytes=50_000))
    await other.last(subjects.feedback_with_id("id1"))
    assert await size() == 50_000
    third = await JetStreamBus.connect(nats_server.url)
    await third.publish(ROLLOUT, b"y", event_id="y")
    assert await size() == 50_000
    await other.close()
    await third.close()


async def test_a_deleted_consumer_is_made_again(bus: JetStreamBus) -> None:
    consumer = await bus.consume(
        stream=subjects.ROLLOUTS, durable="test", subjects=["tuneloop.v1.>"], ack_wait=30
    )
    await bus.publish(ROLLOUT, b"x", event_id="x")
    await call_api(bus.connection, f"CONSUMER.DELETE.{subjects.ROLLOUTS}.test", {}, 5.0)
    async with asyncio.timeout(20):
        while not (found := await consumer.fetch(10, 1.0)):
            pass
    assert [delivery.data for delivery in found] == [b"x"]


async def test_streams_that_vanished_are_made_again(nats_server: NatsServer) -> None:
    bus = await JetStreamBus.connect(nats_server.url)
    await bus.publish(ROLLOUT, b"x", event_id="x")
    nats_server.kill()
    (nats_server.data_dir / "jetstream").rename(nats_server.data_dir / "lost")
    nats_server.start()
    receipt = await until_available(lambda: bus.publish(ROLLOUT, b"y", event_id="y"))
    assert receipt.sequence == 1
    await bus.close()


@pytest.mark.parametrize("stream", [subjects.ROLLOUTS, ROUTING_STREAM])
async def test_a_stream_deleted_under_a_connection_is_made_again(
    bus: JetStreamBus, stream: str
) -> None:
    await bus.publish(ROLLOUT, b"x", event_id="x")
    await bus.set_routing("key", b"1", revision=None)
    consumer = await bus.consume(
        stream=subjects.ROLLOUTS, durable="test", subjects=["tuneloop.v1.>"], ack_wait=30
    )
    await call_api(bus.connection, f"STREAM.DELETE.{stream}", {}, 5.0)
    await until_available(lambda: bus.publish(ROLLOUT, b"y", event_id="y"))
    entry = await until_available(lambda: bus.routing("key"))
    assert (entry is None) == (stream == ROUTING_STREAM)
    await until_available(lambda: bus.set_routing("other", b"2", revision=None))
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(Unavailable):
                if found := await consumer.fetch(10, 1.0):
                    break
    assert found[-1].data == b"y"


async def test_kill_9_of_the_server_loses_nothing_acknowledged(
    nats_server: NatsServer, bus: JetStreamBus
) -> None:
    acknowledged: set[bytes] = set()
    ended = asyncio.Event()

    async def publish() -> None:
        while not ended.is_set():
            event = b"%d" % len(acknowledged)
            # Again with the same id until it is known to be stored, and it counts once.
            await until_available(partial(bus.publish, ROLLOUT, event, event_id=event.decode()))
            acknowledged.add(event)

    publishing = asyncio.create_task(publish())
    for _ in range(3):
        count = len(acknowledged)
        async with asyncio.timeout(15):
            while len(acknowledged) < count + 50:
                await asyncio.sleep(0.01)
        nats_server.kill()
        nats_server.start()
    ended.set()
    await publishing
    consumer = await until_available(
        lambda: bus.consume(
            stream=subjects.ROLLOUTS, durable="audit", subjects=["tuneloop.v1.>"], ack_wait=30
        )
    )
    found: list[bytes] = []
    while deliveries := await consumer.fetch(500, 1.0):
        found += [delivery.data for delivery in deliveries]
    assert sorted(found) == sorted(acknowledged)


async def test_an_event_beyond_the_servers_limit_is_the_callers_mistake(bus: JetStreamBus) -> None:
    with pytest.raises(InvalidRequest, match="larger"):
        await bus.publish(ROLLOUT, b"x" * (2 * 1024 * 1024), event_id="big")


async def test_a_server_that_refuses_us_now_may_accept_us_later(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    config = nats_server.data_dir / "nats.conf"
    open_config = config.read_text()
    bus = await JetStreamBus.connect(nats_server.url)
    await bus.publish(ROLLOUT, b"x", event_id="x")
    nats_server.kill()
    locked = tmp_path / "locked.conf"
    locked.write_text(open_config + 'authorization { token: "secret" }\n')
    binary = str(Path(sys.executable).with_name("nats-server"))
    process = await asyncio.create_subprocess_exec(
        binary, "-a", "127.0.0.1", "-p", str(nats_server.port), "-c", str(locked),
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    await asyncio.sleep(1.5)
    assert not bus.connected
    process.kill()
    await process.wait()
    nats_server.start()
    await until_available(lambda: bus.publish(ROLLOUT, b"y", event_id="y"), seconds=30)
    await bus.close()
