"""Signals are recorded once, make one sample for a user and an answer, and end with either."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from support.learner_events import START, make_rollout, make_signal

from tuneloop.feedback import Signal
from tuneloop.learner.ledger.accounting import downstream, forget_user, retention, steps
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.events.signal_rules import record_signals, sample_id_of
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.ledger.schema import samples, signals

T0 = START.timestamp()


@pytest.fixture
def ledger(tmp_path: Path) -> Database:
    return Database.at(tmp_path / "ledger.db")


def record(ledger: Database, *events: Signal, now: float = T0, learned: bool = True) -> int:
    return len(record_signals(ledger, [(e, 1) for e in events], now, learned=learned))


def rows(ledger: Database, table: Any) -> list[dict[str, Any]]:
    with ledger.read() as connection:
        return [dict(row._mapping) for row in connection.execute(select(table))]


def test_each_kind_counts_once_for_a_user_and_an_answer(ledger: Database) -> None:
    copied = make_signal("c1")
    assert record(ledger, copied, copied, make_signal("c1", "edited", distance=0.25)) == 2
    assert record(ledger, copied, make_signal("c1", user="u2"), make_signal("c2")) == 2
    found = {(r["completion_id"], r["user_hash"], r["kind"]) for r in rows(ledger, signals)}
    assert found == {
        ("c1", "u1", "copied"),
        ("c1", "u1", "edited"),
        ("c1", "u2", "copied"),
        ("c2", "u1", "copied"),
    }
    assert {r["distance"] for r in rows(ledger, signals)} == {None, 0.25}
    made = {(r["sample_id"], r["objective"]) for r in rows(ledger, samples)}
    pairs = (("c1", "u1"), ("c1", "u2"), ("c2", "u1"))
    assert made == {(sample_id_of(*pair), "signals") for pair in pairs}


def test_the_same_id_of_two_users_is_two_signals(ledger: Database) -> None:
    first, second = make_signal("c1", id="mine"), make_signal("c1", user="u2", id="mine")
    assert record(ledger, first, second, make_signal("c2", id="mine")) == 2


def test_a_further_signal_makes_an_unused_sample_young_again(ledger: Database) -> None:
    record(ledger, make_signal("c1"), make_signal("c2"), now=10.0)
    record(ledger, make_signal("c1"), make_signal("c2", "edited"), now=20.0)
    times = {r["completion_id"]: r["recorded_time"] for r in rows(ledger, samples)}
    # A repeat is nothing new.
    assert times == {"c1": 10.0, "c2": 20.0}


def test_where_nothing_learns_from_them_they_make_no_samples(ledger: Database) -> None:
    assert record(ledger, make_signal("c1"), learned=False) == 1
    assert rows(ledger, samples) == []


def test_they_are_no_judgements_and_nothing_else_is_made_of_them(ledger: Database) -> None:
    recorder.record_rollouts(ledger, [make_rollout("c1")], T0)
    record(ledger, make_signal("c1"))
    for objective in ("kto", "dpo", "sft", "ppo", "grpo", "reward_model"):
        assert ready.counts(ledger, objective).ready == 0
    assert ready.counts(ledger, "signals").ready == 1
    assert forget_user.row_counts(ledger)["feedback"] == 0


def test_a_forgotten_user_leaves_no_signal(ledger: Database) -> None:
    recorder.record_rollouts(ledger, [make_rollout("c1"), make_rollout("c2", user="u2")], T0)
    record(
        ledger,
        make_signal("c1"),
        make_signal("c2"),
        make_signal("c1", user="u2"),
        make_signal("c2", user="u2"),
        # Of completions that the ledger does not have, whose ids say whose they are.
        make_signal("chatcmpl-of-u1", user="u2"),
    )
    assert downstream.of_user(ledger, "u1").signals == 2
    forget_user.forget_user(ledger, "u1", T0 + 60)
    assert downstream.of_user(ledger, "u1").signals == 0
    (left,) = rows(ledger, signals)
    assert (left["completion_id"], left["user_hash"]) == ("c2", "u2")
    assert [r["sample_id"] for r in rows(ledger, samples)] == [sample_id_of("c2", "u2")]
    # One that was on its way comes to nothing; what they do later counts.
    assert record(ledger, make_signal("c3", second=59)) == 0
    assert record(ledger, make_signal("c3", second=61)) == 1


def test_the_versions_of_the_reward_model_that_used_them_are_told(ledger: Database) -> None:
    recorder.record_rollouts(ledger, [make_rollout("c1")], T0)
    record(ledger, make_signal("c1"))
    used = {"signals": [sample_id_of("c1", "u1")]}
    done = steps.Step(step=1, samples=used, skipped=False, metrics={})
    steps.commit_steps(ledger, "reward_model", [done], "step-1", T0)
    assert steps.used_samples(ledger, "signals") == 1
    assert steps.used_samples(ledger, "reward_model") == 0
    forget_user.forget_user(ledger, "u1", T0 + 60)
    assert steps.used_samples(ledger, "signals") == 0


def test_they_end_with_their_rollouts(ledger: Database) -> None:
    recorder.record_rollouts(ledger, [make_rollout("old"), make_rollout("used")], T0)
    record(ledger, make_signal("old"), make_signal("used"), make_signal("new", second=100))
    used = {"signals": [sample_id_of("used", "u1")]}
    done = steps.Step(step=1, samples=used, skipped=False, metrics={})
    steps.commit_steps(ledger, "reward_model", [done], "step-1", T0)
    pruned = retention.prune_rollouts(ledger, T0 + 50, None)
    assert (pruned.deleted, pruned.emptied) == (1, 1)
    assert [r["completion_id"] for r in rows(ledger, signals)] == ["new"]
    states = {r["completion_id"]: r["state"] for r in rows(ledger, samples)}
    assert states == {"used": "expired", "new": "open"}
    assert steps.used_samples(ledger, "signals") == 1
