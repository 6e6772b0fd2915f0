"""What every event bus does: one suite, over JetStream with a real server and over memory."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from support.waiting import until_available

from tuneloop.bus import Bus, Consumer, Delivery, Owner, RoutingEntry, StreamUsage, subjects
from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.bus.memory import MemoryBus
from tuneloop.errors import Conflict, FailedPrecondition, InvalidRequest, Unavailable

ROLLOUT = subjects.rollout_generated("tuneloop", "user1")
KEY = subjects.stable_policy_key("tuneloop")


class BusUnderTest:
    """A bus and how to take it down and bring it back."""

    def __init__(self, bus: Bus, down: Callable[[], None], up: Callable[[], None]) -> None:
        self.bus, self.down, self.up = bus, down, up


@pytest.fixture(params=["memory", "jetstream"])
async def under_test(request: pytest.FixtureRequest) -> AsyncIterator[BusUnderTest]:
    if request.param == "memory":
        memory = MemoryBus()
        yield BusUnderTest(memory, memory.go_down, memory.come_back)
        return
    server = request.getfixturevalue("nats_server")
    bus = await JetStreamBus.connect(server.url, name="test")
    yield BusUnderTest(bus, server.kill, server.start)
    await bus.close()


@pytest.fixture
def bus(under_test: BusUnderTest) -> Bus:
    return under_test.bus


async def rollouts(bus: Bus, durable: str = "test", ack_wait: float = 30.0) -> Consumer:
    return await bus.consume(
        stream=subjects.ROLLOUTS,
        durable=durable,
        subjects=["tuneloop.v1.*.rollout.generated.*"],
        ack_wait=ack_wait,
    )


async def owned(bus: Bus, owner_id: str, *, instead_of: str = "") -> Consumer:
    return await bus.consume(
        stream=subjects.ROLLOUTS,
        durable="owned",
        subjects=["tuneloop.v1.*.rollout.generated.*"],
        ack_wait=30.0,
        owner=Owner(owner_id=owner_id, instead_of=instead_of),
    )


async def test_a_consumer_with_an_owner_is_nobody_elses(bus: Bus) -> None:
    await bus.publish(ROLLOUT, b"one", event_id="a")
    consumer = await owned(bus, "first")
    await owned(bus, "first")
    with pytest.raises(FailedPrecondition, match="TUNELOOP_LEARNER_TAKE_OVER=first"):
        await owned(bus, "second")
    with pytest.raises(FailedPrecondition, match="another ledger, first"):
        await owned(bus, "second", instead_of="third")
    (delivery,) = await all_due(consumer)
    await delivery.ack()
    await owned(bus, "second", instead_of="first")
    await owned(bus, "second", instead_of="first")
    with pytest.raises(FailedPrecondition, match="another ledger, second"):
        await owned(bus, "first")


async def test_a_consumer_from_before_owners_goes_to_the_first_who_asks(bus: Bus) -> None:
    await rollouts(bus, durable="owned")
    await owned(bus, "first")
    with pytest.raises(FailedPrecondition):
        await owned(bus, "second")


async def all_due(consumer: Consumer, seconds: float = 0.3) -> list[Delivery]:
    return await consumer.fetch(100, seconds)


async def test_an_event_is_stored_once_and_delivered_with_its_subject(bus: Bus) -> None:
    first = await bus.publish(ROLLOUT, b"one", event_id="a")
    again = await bus.publish(ROLLOUT, b"one", event_id="a")
    assert (first.duplicate, again.duplicate) == (False, True)
    assert first.sequence == again.sequence
    assert first.stream == subjects.ROLLOUTS
    [delivery] = await all_due(await rollouts(bus))
    assert (delivery.subject, delivery.data) == (ROLLOUT, b"one")
    assert (delivery.sequence, delivery.deliveries) == (first.sequence, 1)


async def test_a_subject_no_stream_stores_is_refused(bus: Bus) -> None:
    with pytest.raises((InvalidRequest, Unavailable)):
        await bus.publish("elsewhere.v1.x.rollout.generated.u", b"", event_id="a")
    with pytest.raises(InvalidRequest):
        await bus.last("elsewhere.*")


async def test_a_consumer_sees_only_its_subjects_in_order(bus: Bus) -> None:
    for number in range(20):
        await bus.publish(ROLLOUT, str(number).encode(), event_id=f"g{number}")
        scored = subjects.rollout_scored("tuneloop", "user1")
        await bus.publish(scored, b"score", event_id=f"s{number}")
    consumer = await rollouts(bus)
    assert await consumer.pending() == 20
    first = await consumer.fetch(7, 1.0)
    rest = await all_due(consumer)
    assert [d.data for d in first + rest] == [str(number).encode() for number in range(20)]
    for delivery in first:
        await delivery.ack()
    await asyncio.sleep(0.1)
    assert await consumer.pending() == 13


async def test_fetch_returns_as_soon_as_something_comes(bus: Bus) -> None:
    consumer = await rollouts(bus)
    fetching = asyncio.create_task(consumer.fetch(100, 60.0))
    await asyncio.sleep(0.2)
    await bus.publish(ROLLOUT, b"late", event_id="late")
    async with asyncio.timeout(10):
        assert [d.data for d in await fetching] == [b"late"]


async def test_fetch_is_empty_when_nothing_comes(bus: Bus) -> None:
    assert await (await rollouts(bus)).fetch(10, 0.2) == []


async def test_what_is_not_acknowledged_comes_again(bus: Bus) -> None:
    consumer = await rollouts(bus, ack_wait=0.5)
    await bus.publish(ROLLOUT, b"x", event_id="x")
    [first] = await all_due(consumer)
    assert await all_due(consumer, 0.1) == []
    [second] = await consumer.fetch(10, 5.0)
    assert (first.deliveries, second.deliveries) == (1, 2)
    await second.ack()
    assert await all_due(consumer, 1.0) == []


async def test_in_progress_holds_redelivery_off(bus: Bus) -> None:
    consumer = await rollouts(bus, ack_wait=1.0)
    await bus.publish(ROLLOUT, b"x", event_id="x")
    [delivery] = await all_due(consumer)
    for _ in range(5):
        await delivery.in_progress()
        assert await all_due(consumer, 0.4) == []
    await delivery.ack()


async def test_nak_sends_it_again_after_the_delay(bus: Bus) -> None:
    consumer = await rollouts(bus)
    await bus.publish(ROLLOUT, b"x", event_id="x")
    [delivery] = await all_due(consumer)
    await delivery.nak()
    [again] = await consumer.fetch(10, 5.0)
    await again.nak(delay=1.0)
    assert await all_due(consumer, 0.2) == []
    [third] = await consumer.fetch(10, 5.0)
    assert third.deliveries == 3


async def test_a_durable_goes_on_where_it_was_and_is_shared(bus: Bus) -> None:
    for number in range(10):
        await bus.publish(ROLLOUT, str(number).encode(), event_id=str(number))
    one, two = await rollouts(bus), await rollouts(bus)
    mine, yours = await one.fetch(4, 1.0), await two.fetch(100, 1.0)
    assert len(mine) == 4
    assert {d.data for d in mine} | {d.data for d in yours} == {b"%d" % n for n in range(10)}
    for delivery in mine + yours:
        await delivery.ack()
    await asyncio.sleep(0.1)
    assert await (await rollouts(bus)).pending() == 0
    assert await (await rollouts(bus, durable="other")).pending() == 10


async def test_only_one_of_twenty_racing_publishers_is_first(bus: Bus) -> None:
    async def publish(number: int) -> bool:
        # Another user and kind each: only the id is the same.
        subject = subjects.feedback("tuneloop", "thumb", f"user{number}", "client-id")
        try:
            await bus.publish_first(
                subject,
                str(number).encode(),
                event_id=f"event{number}",
                unique_filter=subjects.feedback_with_id("client-id"),
            )
        except Conflict:
            return False
        return True

    won = await asyncio.gather(*(publish(number) for number in range(20)))
    assert sum(won) == 1
    stored = await bus.last(subjects.feedback_with_id("client-id"))
    assert stored is not None
    assert stored.data == str(won.index(True)).encode()
    assert stored.subject.endswith(f".user{won.index(True)}")


def test_an_id_stands_before_what_varies_with_it() -> None:
    """JetStream walks over all that is stored beneath the first wildcard of a filter."""
    before_id, _, after_id = subjects.feedback_with_id("client-id").partition("client-id")
    assert before_id == "tuneloop.v1.*.feedback."
    assert set(after_id.split(".")) == {"", "*"}


async def test_publish_first_refuses_the_same_event_id_too(bus: Bus) -> None:
    subject = subjects.feedback("tuneloop", "thumb", "user1", "id1")
    unique = subjects.feedback_with_id("id1")
    await bus.publish_first(subject, b"up", event_id="id1", unique_filter=unique)
    with pytest.raises(Conflict):
        await bus.publish_first(subject, b"down", event_id="id1", unique_filter=unique)
    stored = await bus.last(unique)
    assert stored is not None
    assert stored.data == b"up"


async def test_last_is_none_where_nothing_matches(bus: Bus) -> None:
    assert await bus.last(subjects.feedback_with_id("nothing")) is None


async def test_events_can_be_read_one_after_another(bus: Bus) -> None:
    step = subjects.learner_step("tuneloop")
    for number in range(3):
        await bus.publish(step, str(number).encode(), event_id=f"step{number}")
        await bus.publish(
            subjects.weights_published("tuneloop"), b"version", event_id=f"version{number}"
        )
    sequence, found = 0, []
    while (event := await bus.first_after(step, sequence)) is not None:
        assert event.sequence > sequence
        sequence = event.sequence
        found.append((event.subject, event.data))
    assert found == [(step, b"0"), (step, b"1"), (step, b"2")]
    last = await bus.last(step)
    assert last is not None
    assert last.sequence == sequence


async def test_a_dead_letter_is_kept_and_not_delivered_again(bus: Bus) -> None:
    consumer = await rollouts(bus, ack_wait=0.5)
    await bus.publish(ROLLOUT, b"\xff\xfe", event_id="bad")
    [delivery] = await all_due(consumer)
    await bus.dead_letter(delivery, consumer="test", reason="does not\nparse")
    letter = await bus.last("tuneloop.dead.test.user1")
    assert letter is not None
    assert letter.data == b"\xff\xfe"
    assert letter.headers["Tuneloop-Reason"] == "does not parse"
    assert letter.headers["Tuneloop-Subject"] == ROLLOUT
    assert letter.headers["Tuneloop-Sequence"] == str(delivery.sequence)
    assert await all_due(consumer, 1.0) == []
    assert await consumer.pending() == 0


async def test_what_is_buried_is_a_dead_letter_once(bus: Bus) -> None:
    for _ in range(2):
        await bus.bury(b"{}", consumer="test", origin="kto-f1", reason="too\nlong", event_id="f1")
    letter = await bus.last("tuneloop.dead.test")
    assert letter is not None
    assert (letter.data, letter.headers["Tuneloop-Reason"]) == (b"{}", "too long")
    assert letter.headers["Tuneloop-Origin"] == "kto-f1"
    await bus.bury(b"{}", consumer="test", origin="kto-f2", reason="", event_id="f2")
    again = await bus.last("tuneloop.dead.test")
    assert again is not None
    assert again.sequence == letter.sequence + 1
    about = {"consumer": "test", "origin": "kto-f3", "reason": "", "event_id": "f3"}
    await bus.bury(b"{}", user_hash="user1", **about)
    assert await bus.purge(subjects.DEAD_LETTERS, "tuneloop.dead.*.user1") == 1
    assert await bus.last("tuneloop.dead.test.user1") is None
    assert await bus.last("tuneloop.dead.test") == again


async def test_events_have_the_times_of_the_bus(bus: Bus) -> None:
    consumer = await rollouts(bus)
    before = (await bus.usage(subjects.ROLLOUTS)).time
    for number in range(3):
        await bus.publish(ROLLOUT, b"", event_id=str(number))
    times = [delivery.stored_time for delivery in await consumer.fetch(3, 1)]
    found = [before, *times, (await bus.usage(subjects.ROLLOUTS)).time]
    assert len(found) == 5
    assert found == sorted(found)
    assert before.utcoffset() is not None


async def test_purge_removes_one_users_events(bus: Bus) -> None:
    for user in ("user1", "user2"):
        for number in range(3):
            subject = subjects.rollout_generated("tuneloop", user)
            await bus.publish(subject, user.encode(), event_id=f"{user}{number}")
    assert await bus.purge(subjects.ROLLOUTS, "tuneloop.v1.*.rollout.*.user1") == 3
    assert {d.data for d in await all_due(await rollouts(bus))} == {b"user2"}


@pytest.mark.parametrize("seconds", [0.0, 30.0])
async def test_erase_removes_one_users_events_whether_it_has_time_or_not(
    bus: Bus, seconds: float
) -> None:
    for number in range(3):
        for user in ("user1", "user2"):
            subject = subjects.rollout_generated("tuneloop", user)
            await bus.publish(subject, user.encode(), event_id=f"{user}{number}")
    filters = ["tuneloop.v1.*.rollout.*.user1", "tuneloop.v1.*.rollout.*.nobody"]
    erased = await bus.erase(subjects.ROLLOUTS, filters, seconds=seconds)
    assert erased.overwritten + erased.left == 3
    assert not (seconds and erased.left)
    assert [d.data for d in await all_due(await rollouts(bus))] == [b"user2"] * 3
    again = await bus.erase(subjects.ROLLOUTS, filters, seconds=30.0)
    assert (again.overwritten, again.left) == (0, 0)


async def test_purge_up_to_a_sequence_leaves_what_came_later(bus: Bus) -> None:
    scored = subjects.rollout_scored("tuneloop", "user1")
    for number in range(3):
        await bus.publish(ROLLOUT, str(number).encode(), event_id=f"g{number}")
        await bus.publish(scored, b"score", event_id=f"s{number}")
    generated = subjects.rollouts_of("tuneloop", "generated")
    assert await bus.purge(subjects.ROLLOUTS, generated, up_to=3) == 2
    assert [d.data for d in await all_due(await rollouts(bus))] == [b"2"]
    assert await bus.purge(subjects.ROLLOUTS, "tuneloop.v1.*.rollout.>", up_to=0) == 0


async def test_a_consumer_says_up_to_where_all_is_acknowledged(bus: Bus) -> None:
    for number in range(4):
        await bus.publish(ROLLOUT, b"", event_id=f"g{number}")
    consumer = await rollouts(bus)
    assert await consumer.acknowledged() == 0
    first, second, third, fourth = await all_due(consumer)
    for delivery in (first, third):
        await delivery.ack()
    await asyncio.sleep(0.1)
    assert await consumer.acknowledged() == 1
    for delivery in (second, fourth):
        await delivery.ack()
    await asyncio.sleep(0.1)
    assert await consumer.acknowledged() == 4


async def test_the_usage_of_a_stream_grows(bus: Bus) -> None:
    before = await bus.usage(subjects.FEEDBACK)
    subject = subjects.feedback("tuneloop", "comment", "user1", "fb-1")
    await bus.publish(subject, b"x" * 1000, event_id="fb-1")
    after = await bus.usage(subjects.FEEDBACK)
    assert after.stored >= before.stored + 1000
    assert before.created == after.created <= after.time
    assert StreamUsage(stored=25, limit=100).share == 0.25
    assert StreamUsage(stored=25, limit=0).share == 0.0


async def test_routing_is_compare_and_set(bus: Bus) -> None:
    assert await bus.routing(KEY) is None
    one = await bus.set_routing(KEY, b"one", revision=None)
    with pytest.raises(Conflict):
        await bus.set_routing(KEY, b"other", revision=None)
    two = await bus.set_routing(KEY, b"two", revision=one.revision)
    with pytest.raises(Conflict):
        await bus.set_routing(KEY, b"three", revision=one.revision)
    assert await bus.routing(KEY) == two


async def test_watching_gives_the_current_entry_then_each_new_one(bus: Bus) -> None:
    entry = await bus.set_routing(KEY, b"one", revision=None)
    watch = bus.watch_routing(KEY)
    async with asyncio.timeout(10):
        assert await anext(watch) == entry
        entry = await bus.set_routing(KEY, b"two", revision=entry.revision)
        assert await anext(watch) == entry


async def test_while_down_everything_is_unavailable_and_nothing_is_lost(
    under_test: BusUnderTest,
) -> None:
    bus = under_test.bus
    consumer = await rollouts(bus, ack_wait=1.0)
    await bus.publish(ROLLOUT, b"before", event_id="before")
    entry = await bus.set_routing(KEY, b"one", revision=None)
    fetching = asyncio.create_task((await rollouts(bus, durable="waiting")).fetch(1, 0.1))
    await fetching
    under_test.down()
    while bus.connected:
        await asyncio.sleep(0.01)
    with pytest.raises(Unavailable) as refused:
        await bus.publish(ROLLOUT, b"during", event_id="during")
    assert refused.value.retry_after is not None
    with pytest.raises(Unavailable):
        await consumer.fetch(1, 1.0)
    with pytest.raises(Unavailable):
        await bus.routing(KEY)
    under_test.up()
    await until_available(lambda: bus.publish(ROLLOUT, b"during", event_id="during"))
    found: list[bytes] = []
    while len(found) < 2:
        for delivery in await until_available(lambda: consumer.fetch(10, 1.0)):
            found.append(delivery.data)
            await delivery.ack()
    assert found == [b"before", b"during"]
    assert await bus.routing(KEY) == entry


async def test_a_waiting_fetch_ends_when_the_bus_goes_down(under_test: BusUnderTest) -> None:
    consumer = await rollouts(under_test.bus)
    fetching = asyncio.create_task(consumer.fetch(10, 300.0))
    await asyncio.sleep(0.2)
    under_test.down()
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable):
            await fetching


async def test_a_watch_survives_the_bus_going_down(under_test: BusUnderTest) -> None:
    bus = under_test.bus
    seen: list[RoutingEntry] = []

    async def watch() -> None:
        async for entry in bus.watch_routing(KEY):
            seen.append(entry)

    watching = asyncio.create_task(watch())
    entry = await bus.set_routing(KEY, b"0", revision=None)
    for number in range(1, 4):
        under_test.down()
        await asyncio.sleep(0.05)
        under_test.up()
        value = str(number).encode()
        revision = entry.revision
        entry = await until_available(
            lambda v=value, r=revision: bus.set_routing(KEY, v, revision=r)
        )
        async with asyncio.timeout(15):
            while not seen or seen[-1] != entry:
                await asyncio.sleep(0.01)
    revisions = [e.revision for e in seen]
    assert revisions == sorted(set(revisions))
    watching.cancel()
