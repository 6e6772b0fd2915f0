"""What is read to calibrate signals, and which of them are learned from."""

from pathlib import Path

import pytest
from support.learner_events import (
    START,
    make_comparison,
    make_rollout,
    make_signal,
    make_thumb,
)

from tuneloop.feedback import Feedback, FeedbackKind, Retraction, Signal
from tuneloop.learner.guards.signals import Behavior, Calibration
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import lifecycle, recorder
from tuneloop.learner.ledger.events.signal_rules import record_signals, sample_id_of
from tuneloop.learner.ledger.queue.signals import behaviors, soft_labels
from tuneloop.learner.samples import SignalledText
from tuneloop.rollouts import Rollout, RolloutSource

T0 = START.timestamp()
COPIED = Calibration(kinds=("copied",), coefficients=(0.0, 2.0), base=0.5)
"""P(up | copied) is σ(2) = 0.8808, and |2q − 1| = tanh(1) = 0.7616."""


@pytest.fixture
def ledger(tmp_path: Path) -> Database:
    return Database.at(tmp_path / "ledger.db")


def add(ledger: Database, *events: Rollout | Feedback | Signal, now: float = T0) -> None:
    for event in events:
        if isinstance(event, Rollout):
            recorder.record_rollouts(ledger, [event], now)
        elif isinstance(event, Signal):
            record_signals(ledger, [(event, 1)], now, learned=True)
        else:
            recorder.record_feedback(ledger, [(event, 1)], now)


def behavior(completion_id: str, up: bool | None, user: str = "u1", **signals: float) -> Behavior:
    return Behavior(completion_id=completion_id, user=user, signals=signals, up=up)


def take(
    ledger: Database,
    calibration: Calibration = COPIED,
    limit: int = 9,
    silent_since: float = T0,
    exclude: tuple[str, ...] = (),
) -> list[SignalledText]:
    return soft_labels(ledger, calibration, limit, silent_since=silent_since, exclude=exclude)


def ids(found: list[SignalledText]) -> list[str]:
    return [sample.sample_id for sample in found]


def test_behaviors_join_signals_thumbs_and_answers_that_got_neither(ledger: Database) -> None:
    assert behaviors(ledger) == []
    add(ledger, *(make_rollout(f"c{n}") for n in range(4)), make_rollout("other", user="u2"))
    add(ledger, make_rollout("own", source=RolloutSource.PROMPTS))
    add(ledger, make_signal("c0"), make_signal("c0", "edited", distance=0.25))
    add(ledger, make_signal("c1", "abandoned"))
    add(ledger, make_thumb("f0", "c0", up=True), make_thumb("f2", "c2", up=False))
    # Nobody knows what those do who send no signals.
    add(ledger, make_thumb("f3", "other", up=True, user="u2"))
    assert behaviors(ledger) == [
        behavior("c0", True, copied=1.0, edited=0.25),
        behavior("c1", None, abandoned=1.0),
        behavior("c2", False),
        behavior("c3", None),
    ]


def test_of_several_thumbs_the_last_counts_and_retracted_ones_do_not(ledger: Database) -> None:
    add(ledger, make_signal("c0"), make_signal("c1"))
    add(ledger, make_thumb("f0", "c0", up=True, second=1), make_thumb("f1", "c0", False, second=2))
    add(ledger, make_thumb("f2", "c1", up=True, second=3))
    taken = Retraction(
        feedback_id="f2",
        kind=FeedbackKind.THUMB,
        policy="tuneloop",
        tenant="default",
        user_hash="u1",
        retracted_time=START,
    )
    lifecycle.record_retractions(ledger, [(taken, 2)], T0)
    assert behaviors(ledger) == [
        behavior("c0", False, copied=1.0),
        behavior("c1", None, copied=1.0),
    ]


def test_what_came_before_the_first_signal_says_nothing_of_them(ledger: Database) -> None:
    add(ledger, make_rollout("c0"), make_thumb("f0", "c0", second=5))
    add(ledger, make_signal("c1", second=10))
    assert behaviors(ledger) == [behavior("c1", None, copied=1.0)]


def test_a_label_has_the_chance_of_its_signals_and_what_that_tells(ledger: Database) -> None:
    add(ledger, make_rollout("c0", text="An answer"), make_signal("c0"))
    (label,) = take(ledger)
    assert (label.sample_id, label.prompt, label.completion) == (
        sample_id_of("c0", "u1"),
        "Hi",
        "An answer",
    )
    assert label.chance == pytest.approx(0.880797)
    assert label.weight == pytest.approx(0.761594)


def test_what_says_nothing_or_waits_makes_no_label(ledger: Database) -> None:
    add(ledger, make_rollout("c0"), make_signal("c0", "edited"), make_signal("nowhere"))
    add(ledger, make_rollout("test", source=RolloutSource.EVAL), make_signal("test"))
    assert take(ledger) == []
    assert take(ledger, Calibration()) == []
    add(ledger, make_rollout("nowhere"))
    assert ids(take(ledger)) == [sample_id_of("nowhere", "u1")]
    assert take(ledger, silent_since=T0 - 1) == []


def test_who_judged_an_answer_is_not_second_guessed(ledger: Database) -> None:
    add(ledger, *(make_rollout(f"c{n}") for n in range(4)))
    add(ledger, *(make_signal(f"c{n}") for n in range(4)), make_signal("c0", user="u2"))
    add(ledger, make_thumb("f0", "c0", up=False), make_comparison("f1", "c1", "c2"))
    left = {sample_id_of("c3", "u1"), sample_id_of("c0", "u2")}
    assert set(ids(take(ledger))) == left
    taken = Retraction(
        feedback_id="f0",
        kind=FeedbackKind.THUMB,
        policy="tuneloop",
        tenant="default",
        user_hash="u1",
        retracted_time=START,
    )
    lifecycle.record_retractions(ledger, [(taken, 2)], T0)
    assert set(ids(take(ledger))) == left | {sample_id_of("c0", "u1")}


def test_the_newest_go_first(ledger: Database) -> None:
    add(ledger, *(make_rollout(f"c{n}") for n in range(3)))
    add(ledger, *(make_signal(f"c{n}", second=n) for n in range(3)))
    newest = [sample_id_of(f"c{n}", "u1") for n in (2, 1, 0)]
    assert ids(take(ledger, limit=2)) == newest[:2]
    assert ids(take(ledger, exclude=(newest[0],))) == newest[1:]
    assert len(soft_labels(ledger, COPIED, 9, silent_since=T0, not_before=T0 + 1)) == 2
