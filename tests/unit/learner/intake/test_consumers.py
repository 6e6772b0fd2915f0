"""Intake from the bus: order, repetition, poison, a ledger that refuses, a bus that is away."""

from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import select
from sqlalchemy.exc import DataError
from support.learner_events import START, make_rollout, make_score, make_thumb
from support.learner_parts import Parts
from support.waiting import until

from tuneloop.bus.subjects import (
    DEAD_LETTERS,
    FEEDBACK,
    LEARNER,
    ROLLOUTS,
    feedback,
    rollout_generated,
    rollout_scored,
    weights_activated,
)
from tuneloop.errors import Unavailable
from tuneloop.feedback import Feedback
from tuneloop.learner.intake import consumers
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.ledger.schema import samples
from tuneloop.learner.service.forget_user import ForgetUser
from tuneloop.policies import Activation
from tuneloop.rollouts import Rollout, ScoredRollout
from tuneloop.v1 import events_pb2
from tuneloop.wire import (
    encode_activation,
    encode_feedback,
    encode_rollout_generated,
    encode_rollout_scored,
)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    monkeypatch.setattr(consumers, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(consumers, "FETCH_SECONDS", 0.2)
    return Parts(folder=tmp_path)


async def send(parts: Parts, event: Any, event_id: str = "") -> None:
    match event:
        case Rollout():
            subject = rollout_generated("tuneloop", event.user_hash)
            data, name = encode_rollout_generated(event), f"rollout-{event.completion_id}"
        case ScoredRollout():
            subject = rollout_scored("tuneloop", "u1")
            data, name = encode_rollout_scored(event), f"score-{event.completion_id}"
        case Feedback():
            subject = feedback("tuneloop", "thumb", event.user_hash, event.feedback_id)
            data, name = encode_feedback(event), event.feedback_id
        case _:
            subject, data = event
            name = event_id
    await parts.bus.publish(subject, data, event_id=event_id or name)


def open_events(parts: Parts) -> int:
    """Events some consumer of the learner has not acknowledged."""
    return sum(
        len(parts.bus.streams[durable.stream].events) - len(durable.acknowledged)
        for durable in parts.bus._durables.values()
        if durable.stream == FEEDBACK
    )


async def test_events_reach_the_ledger_in_any_order_and_are_acknowledged(parts: Parts) -> None:
    await send(parts, make_thumb("f1", "c1"))
    await send(parts, make_score("c1"))
    async with parts.taking_in():
        await until(lambda: ready.counts(parts.database, "kto").waiting == 1)
        await send(parts, make_rollout("c1"))
        await send(parts, make_rollout("c1"), event_id="again")
        await send(parts, make_thumb("f1", "c1"), event_id="again")
        await until(lambda: ready.counts(parts.database, "kto").ready == 1)
        await until(lambda: ready.counts(parts.database, "ppo").ready == 1)
        await until(lambda: open_events(parts) == 0)
    assert parts.loop.arrived.is_set()
    assert ready.counts(parts.database, "kto") == ready.SampleCounts(ready=1, waiting=0, used=0)


async def test_poison_becomes_a_dead_letter_and_holds_nothing_up(parts: Parts) -> None:
    subject = feedback("tuneloop", "thumb", "u1", "bad")
    await send(parts, (subject, b"\xff\xfe garbage"), "bad")
    await send(parts, (rollout_generated("tuneloop", "u1"), b"\x0a\x02"), "bad-1")
    await send(parts, (rollout_scored("tuneloop", "u1"), b"\x12\x01x"), "bad-2")
    await send(parts, (weights_activated("tuneloop"), b"{}"), "bad")
    timeless = events_pb2.FeedbackGiven.FromString(encode_feedback(make_thumb("timeless", "c1")))
    timeless.accepted_time.seconds = 10**15
    subject = feedback("tuneloop", "thumb", "u1", "timeless")
    await send(parts, (subject, timeless.SerializeToString()), "timeless")
    foreign = encode_feedback(make_thumb("foreign", "c1", policy="other"))
    await send(parts, (feedback("tuneloop", "thumb", "u1", "foreign"), foreign), "foreign")
    await send(parts, make_thumb("good", "c1"))
    async with parts.taking_in():
        await until(lambda: ready.counts(parts.database, "kto").waiting == 1)
        await until(lambda: len(parts.bus.streams[DEAD_LETTERS].events) == 6)
        await until(lambda: open_events(parts) == 0)
    reasons = {
        event.headers["Tuneloop-Subject"]: event.headers["Tuneloop-Reason"]
        for event in parts.bus.streams[DEAD_LETTERS].events
    }
    assert (
        "'other' on a subject of 'tuneloop'"
        in reasons[feedback("tuneloop", "thumb", "u1", "foreign")]
    )
    assert {e.subject for e in parts.bus.streams[DEAD_LETTERS].events} == {
        "tuneloop.dead.learner-tuneloop-activations",
        *(
            f"tuneloop.dead.learner-tuneloop-{name}.u1"
            for name in ("feedback", "rollouts", "scores")
        ),
    }


async def test_an_event_is_not_acknowledged_before_the_ledger_has_it(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []
    really = recorder.record_feedback

    def full(database: Any, events: Any, now: float, *rules: Any) -> Any:
        attempts.append(len(events))
        if len(attempts) < 4:
            raise Unavailable("the disk is full")
        return really(database, events, now, *rules)

    monkeypatch.setattr(recorder, "record_feedback", full)
    await send(parts, make_thumb("f1", "c1"))
    async with parts.taking_in():
        await until(lambda: len(attempts) >= 2)
        assert open_events(parts) == 1
        await until(lambda: open_events(parts) == 0)
    assert ready.counts(parts.database, "kto").waiting == 1
    assert parts.bus.streams[DEAD_LETTERS].events == []


async def test_a_ledger_that_is_away_for_long_costs_no_event(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []
    really = recorder.record_feedback

    def away(database: Any, events: Any, now: float, *rules: Any) -> Any:
        attempts.append(len(events))
        if len(attempts) < 3 * consumers.MAX_DELIVERIES:
            raise Unavailable("the connection was refused")
        return really(database, events, now, *rules)

    monkeypatch.setattr(recorder, "record_feedback", away)
    await send(parts, make_thumb("f1", "c1"))
    await send(parts, make_thumb("f2", "c2"))
    async with parts.taking_in():
        await until(lambda: ready.counts(parts.database, "kto").waiting == 2)
        await until(lambda: open_events(parts) == 0)
    assert parts.bus.streams[DEAD_LETTERS].events == []


async def test_what_can_never_be_recorded_ends_as_a_dead_letter(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = recorder.record_feedback

    def picky(database: Any, events: Any, now: float, *rules: Any) -> Any:
        if any(event.feedback_id == "cursed" for event, _ in events):
            raise DataError("INSERT", {}, Exception("no"))
        return really(database, events, now, *rules)

    monkeypatch.setattr(recorder, "record_feedback", picky)
    await send(parts, make_thumb("cursed", "c1"))
    await send(parts, make_thumb("good", "c2"))
    async with parts.taking_in():
        await until(lambda: ready.counts(parts.database, "kto").waiting == 1)
        await until(lambda: len(parts.bus.streams[DEAD_LETTERS].events) == 1)
    (dead,) = parts.bus.streams[DEAD_LETTERS].events
    assert dead.headers["Tuneloop-Deliveries"] == str(consumers.MAX_DELIVERIES + 1)


async def test_intake_goes_on_when_the_bus_comes_back(parts: Parts) -> None:
    async with parts.taking_in():
        await send(parts, make_thumb("f1", "c1"))
        await until(lambda: ready.counts(parts.database, "kto").waiting == 1)
        parts.bus.go_down()
        await until(lambda: not parts.bus.connected)
        parts.bus.come_back()
        await send(parts, make_thumb("f2", "c2"))
        await until(lambda: ready.counts(parts.database, "kto").waiting == 2)


def histogram(suffix: str) -> float:
    value = REGISTRY.get_sample_value(f"tuneloop_learner_feedback_to_serving_seconds_{suffix}")
    return value or 0.0


async def test_the_time_from_feedback_to_serving_is_measured_once(parts: Parts) -> None:
    parts.thumbs(0, 8)
    await parts.turn()
    await parts.turn()
    count, total = histogram("count"), histogram("sum")
    served = START.replace(minute=1)
    async with parts.taking_in():
        for replica in ("a", "b"):
            activation = Activation(
                policy="tuneloop",
                policy_version=1,
                replica=replica,
                activated_time=served,
                swap_seconds=0.1,
            )
            subject = weights_activated("tuneloop")
            data = encode_activation(activation)
            await parts.bus.publish(subject, data, event_id=f"activated-{replica}")
        await until(lambda: histogram("count") >= count + 8)
        consumer = await parts.bus.consume(
            stream=LEARNER,
            durable="learner-tuneloop-activations",
            subjects=[weights_activated("tuneloop")],
            ack_wait=60.0,
        )
        while await consumer.pending():
            await parts.bus.changed(0.05)
    # Accepted at seconds 0 to 7, served at second 60.
    assert histogram("count") == count + 8
    assert histogram("sum") - total == pytest.approx(8 * 60 - sum(range(8)))
    assert parts.bus.streams[ROLLOUTS].events == []


@pytest.mark.parametrize("skew", [60, -60])
async def test_the_last_verdict_is_the_one_that_came_last_whatever_gateways_clocks_say(
    parts: Parts, skew: int
) -> None:
    await send(parts, make_rollout("c1"))
    await send(parts, make_thumb("f1", "c1", up=True, second=skew))
    parts.clock.now += 1
    await send(parts, make_thumb("f2", "c1", up=False, second=-skew))
    async with parts.taking_in():
        await until(lambda: len(recorder.recorded_feedback(parts.database, ["f1", "f2"])) == 2)
    with parts.database.read() as connection:
        rows = connection.execute(select(samples.c.feedback_id, samples.c.state, samples.c.current))
        assert {tuple(row) for row in rows if row.current} == {("f2", "open", True)}


@pytest.mark.parametrize("skew", [3600, -3600])
async def test_forgetting_goes_by_the_clock_of_the_bus(parts: Parts, skew: int) -> None:
    await send(parts, make_rollout("c1"))
    await send(parts, make_thumb("f1", "c1", up=True, second=skew))
    on_their_way = list(parts.bus.streams[FEEDBACK].events)
    parts.clock.now += 1
    await ForgetUser(parts.database, parts.bus, parts.loop).forget_user("u1")
    parts.clock.now += 1
    parts.bus.streams[FEEDBACK].events = on_their_way
    await send(parts, make_thumb("f2", "c2", up=True, second=-skew))
    async with parts.taking_in():
        await until(lambda: recorder.recorded_feedback(parts.database, ["f2"]) == {"f2"})
    assert recorder.recorded_feedback(parts.database, ["f1"]) == set()
