"""What an erased event leaves in the files of a real nats-server: nothing."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.nats_servers import Server
from support.ports import free_port

from tuneloop.bus import subjects
from tuneloop.bus.jetstream import JetStreamBus

MARKER = b"the-secret-of-ann"
OTHER = b"the-story-of-bob"
LINES = 40


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that rewrites files every second, and not every two minutes."""
    port = free_port()
    config = tmp_path / "nats.conf"
    config.write_text(
        f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{tmp_path}/js", sync_interval: 1s }}'
    )
    server = Server(config, port)
    server.start()
    server.wait()
    yield server
    server.kill()


@pytest.fixture
async def bus(server: Server) -> AsyncIterator[JetStreamBus]:
    connected = await JetStreamBus.connect(f"nats://127.0.0.1:{server.port}", name="test")
    yield connected
    await connected.close()


async def publish(bus: JetStreamBus, start: int, count: int) -> None:
    """Publish events of two users by turns, of every stream that holds texts."""
    for number in range(start, start + count):
        user, text = (("ann", MARKER), ("bob", OTHER))[number % 2]
        for subject in (
            subjects.rollout_generated("tuneloop", user),
            subjects.feedback("tuneloop", "comment", user, f"f{number}"),
        ):
            await bus.publish(subject, text * LINES, event_id=f"{number}")
        letter = {"consumer": "test", "origin": "o", "reason": text.decode(), "user_hash": user}
        await bus.bury(text * LINES, event_id=f"{number}", **letter)


def found(server: Server, text: bytes) -> int:
    """Return how often a text is in the server's files."""
    files = [path for path in server.config.parent.rglob("*") if path.is_file()]
    return sum(path.read_bytes().count(text) for path in files)


async def until_gone(server: Server, text: bytes) -> None:
    async with asyncio.timeout(20):
        while found(server, text):
            await asyncio.sleep(0.2)


async def erase(bus: JetStreamBus, user: str, seconds: float) -> tuple[int, int]:
    """Erase a user from every stream; how many events were overwritten, and how many left."""
    places = subjects.of_user(user)
    erased = [await bus.erase(stream, [theirs], seconds=seconds) for stream, theirs in places]
    return sum(each.overwritten for each in erased), sum(each.left for each in erased)


async def test_the_bytes_of_an_erased_event_are_gone_at_once(
    server: Server, bus: JetStreamBus
) -> None:
    await publish(bus, 0, 20)
    assert found(server, MARKER) > 30 * LINES
    kept = found(server, OTHER)
    assert await erase(bus, "ann", 60.0) == (30, 0)
    assert found(server, MARKER) == 0
    assert found(server, OTHER) == kept
    # The streams go on as before, through a restart too.
    await publish(bus, 21, 1)
    server.kill()
    server.start()
    server.wait()
    again = await JetStreamBus.connect(f"nats://127.0.0.1:{server.port}", name="again")
    last = await again.last(subjects.rollout_generated("tuneloop", "bob"))
    await again.close()
    assert last is not None
    assert last.data == OTHER * LINES


async def test_what_was_deleted_before_leaves_the_files_soon(
    server: Server, bus: JetStreamBus
) -> None:
    await publish(bus, 0, 20)
    for stream, everything in (
        (subjects.ROLLOUTS, "tuneloop.v1.tuneloop.rollout.>"),
        (subjects.FEEDBACK, subjects.feedback_of("tuneloop")),
        (subjects.DEAD_LETTERS, "tuneloop.dead.>"),
    ):
        assert await bus.purge(stream, everything, up_to=10) == 10
    await publish(bus, 20, 2)
    await asyncio.sleep(2.5)
    assert found(server, MARKER), "a trim leaves the bytes: otherwise this test shows nothing"
    assert await erase(bus, "ann", 60.0) == (3 * 6, 0)
    await until_gone(server, MARKER)
    assert found(server, OTHER)


async def test_what_there_was_no_time_for_leaves_the_files_soon(
    server: Server, bus: JetStreamBus
) -> None:
    await publish(bus, 0, 20)
    assert await erase(bus, "ann", 0.0) == (0, 30)
    await until_gone(server, MARKER)
    assert found(server, OTHER)
