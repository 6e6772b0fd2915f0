"""The stream of feedback is trimmed below what the ledger holds, and never above."""

from collections.abc import Awaitable
from datetime import UTC, datetime
from pathlib import Path

from support.learner_events import START, make_thumb
from support.learner_parts import Parts

from tuneloop.bus import Consumer
from tuneloop.bus.memory import MemoryStream
from tuneloop.bus.subjects import FEEDBACK, feedback
from tuneloop.learner.intake.consumers import IntakeConsumer, make_consumers
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.monitoring.stream_trim import (
    KEEP_SECONDS,
    KEEP_SECONDS_CROWDED,
    StreamTrim,
)
from tuneloop.wire import encode_feedback


async def publish(parts: Parts, number: int, age: float, policy: str = "tuneloop") -> None:
    """A thumb that was accepted `age` seconds before `START`."""
    event = make_thumb(f"fb-{policy}-{number}", f"c{number}", policy=policy, second=-age)
    subject = feedback(policy, "thumb", event.user_hash, event.feedback_id)
    parts.clock.now = START.timestamp() - age
    await parts.bus.publish(subject, encode_feedback(event), event_id=event.feedback_id)
    parts.clock.now = START.timestamp()


def left(parts: Parts) -> list[int]:
    return [event.sequence for event in parts.bus.streams[FEEDBACK].events]


def intake(database: Database) -> IntakeConsumer:
    return next(c for c in make_consumers(database, "tuneloop") if c.stream == FEEDBACK)


def trim_of(parts: Parts, database: Database) -> StreamTrim:
    def open_consumer() -> Awaitable[Consumer]:
        return intake(database).open(parts.bus, "tuneloop")

    return StreamTrim(parts.bus, database, "tuneloop", open_consumer)


async def take_in(parts: Parts, count: int) -> None:
    """Record and acknowledge the next `count` events, as the intake does."""
    feedback_intake = intake(parts.database)
    consumer = await feedback_intake.open(parts.bus, "tuneloop")
    await feedback_intake.handle(parts.bus, "intake", await consumer.fetch(count, 0.1))


async def test_what_the_ledger_has_held_long_enough_goes(tmp_path: Path) -> None:
    parts = Parts(folder=tmp_path)
    trim = trim_of(parts, parts.database)
    for number, age in enumerate([KEEP_SECONDS + 20, KEEP_SECONDS + 10, KEEP_SECONDS - 10, 0]):
        await publish(parts, number, age)
    assert await trim.trim() == 0
    await take_in(parts, 1)
    assert await trim.trim() == 1
    await take_in(parts, 3)
    assert await trim.trim() == 1
    assert left(parts) == [3, 4]


async def test_a_crowded_stream_keeps_an_hour(tmp_path: Path) -> None:
    parts = Parts(folder=tmp_path)
    trim = trim_of(parts, parts.database)
    for number, age in enumerate([KEEP_SECONDS_CROWDED + 20, KEEP_SECONDS_CROWDED - 10]):
        await publish(parts, number, age)
    await take_in(parts, 2)
    assert await trim.trim() == 0
    parts.bus.limits[FEEDBACK] = int((await parts.bus.usage(FEEDBACK)).stored * 1.9)
    assert await trim.trim() == 1
    assert left(parts) == [2]


async def test_a_ledger_that_was_restored_older_loses_nothing(tmp_path: Path) -> None:
    """The consumer is ahead of that ledger: what only the stream holds stays."""
    parts = Parts(folder=tmp_path)
    trim = trim_of(parts, parts.database)
    for number in range(4):
        await publish(parts, number, KEEP_SECONDS + 100 - number)
    consumer = await intake(parts.database).open(parts.bus, "tuneloop")
    deliveries = await consumer.fetch(10, 0.1)
    await intake(parts.database).handle(parts.bus, "intake", deliveries[:2])
    for delivery in deliveries[2:]:
        await delivery.ack()
    assert await trim.trim() == 2
    assert left(parts) == [3, 4]


async def test_a_stream_that_was_made_again_counts_from_one_again(tmp_path: Path) -> None:
    """Places in the lost one say nothing of what the new one holds."""
    parts = Parts(folder=tmp_path)
    trim = trim_of(parts, parts.database)
    for number in range(3):
        await publish(parts, number, KEEP_SECONDS + 100 - number)
    await take_in(parts, 3)
    made = datetime.fromtimestamp(parts.clock.now - 50, UTC)
    parts.bus.streams[FEEDBACK] = MemoryStream(created=made)
    parts.bus._durables.clear()
    for number in range(3, 6):
        await publish(parts, number, 40)
    await take_in(parts, 3)
    assert await trim.trim() == 0
    assert left(parts) == [1, 2, 3]
    parts.clock.now += KEEP_SECONDS
    assert await trim.trim() == 3


async def test_other_policies_keep_theirs(tmp_path: Path) -> None:
    parts = Parts(folder=tmp_path)
    trim = trim_of(parts, parts.database)
    await publish(parts, 0, KEEP_SECONDS + 20, policy="other")
    await publish(parts, 1, KEEP_SECONDS + 20)
    await take_in(parts, 1)
    assert await trim.trim() == 1
    assert left(parts) == [1]
