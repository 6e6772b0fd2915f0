"""Three nats-servers, streams with three copies, and the leader killed under publishers."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.nats_servers import Server
from support.ports import free_port
from support.waiting import until

from tuneloop.bus import subjects
from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.bus.streams import ApiError, call_api
from tuneloop.errors import Unavailable

pytestmark = pytest.mark.slow

NAMES = ("one", "two", "three")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[dict[str, Server]]:
    routes = {name: free_port() for name in NAMES}
    servers = {}
    for name, route in routes.items():
        config = tmp_path / f"{name}.conf"
        port = free_port()
        others = ", ".join(f'"nats://127.0.0.1:{other}"' for other in routes.values())
        config.write_text(
            f"""
            server_name: {name}
            listen: "127.0.0.1:{port}"
            jetstream {{ store_dir: "{tmp_path / name}" }}
            cluster {{ name: tuneloop, listen: "127.0.0.1:{route}", routes: [{others}] }}
            """
        )
        servers[name] = Server(config=config, port=port)
    for server in servers.values():
        server.start()
    for server in servers.values():
        await asyncio.to_thread(server.wait)
    yield servers
    for server in servers.values():
        server.kill()


async def leader_of(bus: JetStreamBus, stream: str) -> str:
    """Once all three copies are current."""
    async with asyncio.timeout(60):
        while True:
            try:
                info = await call_api(bus.connection, f"STREAM.INFO.{stream}", {}, 5.0)
            except (Unavailable, ApiError):
                info = {}
            group = info.get("cluster", {})
            copies = group.get("replicas", [])
            if group.get("leader") and len(copies) == 2 and all(c["current"] for c in copies):
                return str(group["leader"])
            await asyncio.sleep(0.1)


async def publish_until(
    bus: JetStreamBus, publisher: int, stop: asyncio.Event, acknowledged: set[str]
) -> None:
    """Feedback after feedback; what was not acknowledged is published again under its id."""
    number = 0
    while not stop.is_set():
        name = f"f{publisher}-{number}"
        subject = subjects.feedback("tuneloop", "thumb", "u1", name)
        try:
            await bus.publish(subject, name.encode(), event_id=name)
        except Unavailable:
            await asyncio.sleep(0.1)
            continue
        acknowledged.add(name)
        number += 1


async def stored(bus: JetStreamBus) -> Counter[str]:
    """What the feedback stream holds, read as a consumer does."""
    consumer = await bus.consume(
        stream=subjects.FEEDBACK, durable="reader", subjects=["tuneloop.v1.>"], ack_wait=30
    )
    found: Counter[str] = Counter()
    while deliveries := await consumer.fetch(256, 3.0):
        for delivery in deliveries:
            found[delivery.data.decode()] += 1
            await delivery.ack()
    return found


async def test_no_acknowledged_event_is_lost_when_leaders_die(cluster: dict[str, Server]) -> None:
    url = ",".join(f"nats://127.0.0.1:{server.port}" for server in cluster.values())
    buses = [await JetStreamBus.connect(url, name=f"p{n}", replicas=3, wait=20) for n in range(3)]
    first = subjects.feedback("tuneloop", "thumb", "u1", "first")
    async with asyncio.timeout(60):
        while True:
            try:
                # Once there is a leader of all, this makes the streams.
                await buses[0].publish(first, b"first", event_id="first")
                break
            except Unavailable:
                await asyncio.sleep(0.2)
    stop, acknowledged = asyncio.Event(), {"first"}
    publishers = [
        asyncio.create_task(publish_until(bus, number, stop, acknowledged))
        for number, bus in enumerate(buses)
    ]
    for _ in range(2):
        leader = await leader_of(buses[0], subjects.FEEDBACK)
        before = len(acknowledged)
        await until(lambda: len(acknowledged) > before + 100, seconds=90)  # noqa: B023
        cluster[leader].kill()
        before = len(acknowledged)
        # Every publisher carries on with two servers of three.
        await until(lambda: len(acknowledged) > before + 300, seconds=90)  # noqa: B023
        cluster[leader].start()
        await asyncio.to_thread(cluster[leader].wait)
    stop.set()
    await asyncio.gather(*publishers)
    found = await stored(buses[1])
    assert acknowledged <= found.keys()
    assert set(found.values()) == {1}
    for bus in buses:
        await bus.close()


async def test_streams_of_one_server_get_their_copies_later(cluster: dict[str, Server]) -> None:
    """As when a cluster grows from one server to three: the setting is raised, and that is all."""
    url = f"nats://127.0.0.1:{cluster['one'].port}"
    for replicas in (1, 3):
        bus = await JetStreamBus.connect(url, name="learner", replicas=replicas, wait=20)
        async with asyncio.timeout(60):
            while True:
                try:
                    await bus.routing("policy.tuneloop.stable")
                    break
                except Unavailable:
                    await asyncio.sleep(0.2)
        info = await call_api(bus.connection, f"STREAM.INFO.{subjects.FEEDBACK}", {}, 5.0)
        assert info["config"]["num_replicas"] == replicas
        await bus.close()


def copies_of(folder: Path, text: bytes) -> dict[str, int]:
    """How often a text is below the folder of each server: in its streams and Raft logs."""
    found = Counter[str]()
    for path in folder.rglob("*"):
        if path.is_file():
            found[path.relative_to(folder).parts[0]] += path.read_bytes().count(text)
    return {name: found[name] for name in NAMES}


@pytest.mark.timeout(420)
async def test_erased_events_leave_every_copy_and_every_raft_log(
    cluster: dict[str, Server], tmp_path: Path
) -> None:
    url = ",".join(f"nats://127.0.0.1:{server.port}" for server in cluster.values())
    bus = await JetStreamBus.connect(url, name="test", replicas=3)
    text = b"the-secret-of-ann"
    subject = subjects.rollout_generated("tuneloop", "ann")
    for number in range(20):
        async with asyncio.timeout(60):
            while True:
                try:
                    await bus.publish(subject, text, event_id=f"ann-{number}")
                    break
                except Unavailable:
                    await asyncio.sleep(0.2)
    await leader_of(bus, subjects.ROLLOUTS)
    assert min(copies_of(tmp_path, text).values()) >= 20
    erased = await bus.erase(subjects.ROLLOUTS, ["tuneloop.v1.*.rollout.*.ann"], seconds=60.0)
    assert (erased.overwritten, erased.left) == (20, 0)
    # A server compacts its Raft logs every two minutes or so, above 8 MiB, which erasing sees to.
    async with asyncio.timeout(300):
        while sum(copies_of(tmp_path, text).values()):
            await asyncio.sleep(1)
    await bus.close()
