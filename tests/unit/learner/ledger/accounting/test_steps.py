"""Accounting: committed steps and their uses, rolling back, forgetting, whose ledger it is."""

import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from support.learner_events import make_comparison, make_rollout, make_score, make_thumb

from tuneloop.errors import CorruptData, SettingsError
from tuneloop.learner.ledger.accounting import forget_user, lineage, steps, versions
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.ledger.schema import feedback, rollouts, uses


@pytest.fixture
def ledger(tmp_path: Path) -> Database:
    database = Database.at(tmp_path / "ledger.db")
    completions = [make_rollout(f"c{n}") for n in range(6)]
    thumbs = [(make_thumb(f"f{n}", f"c{n}", second=n), n) for n in range(6)]
    recorder.record_rollouts(database, completions, 0.0)
    recorder.record_feedback(database, thumbs, 0.0)
    return database


def step(number: int, *sample_ids: str) -> steps.Step:
    return steps.Step(
        step=number, samples={"kto": list(sample_ids)}, skipped=False, metrics={"loss": 0.5}
    )


def add_version(ledger: Database, version: int, first: int, last: int, parent: int = 0) -> None:
    versions.add_version(
        ledger,
        model="policy",
        version=version,
        policy="tuneloop",
        parent=parent,
        first_step=first,
        last_step=last,
        manifest="{}",
        created_time=datetime.now(UTC),
    )


def test_a_sample_cannot_be_used_twice(ledger: Database) -> None:
    steps.commit_steps(ledger, "policy", [step(1, "f0", "f1")], "one", 0.0)
    with pytest.raises(IntegrityError):
        steps.commit_steps(ledger, "policy", [step(2, "f2", "f1")], "two", 0.0)
    # All of it is kept or nothing: f2 is still to be used.
    assert [s.sample_id for s in ready.take_samples(ledger, "kto", 9)[0]] == [
        "f2",
        "f3",
        "f4",
        "f5",
    ]
    assert steps.checkpoints(ledger, "policy") == [(1, "one")]


def test_rolling_back_opens_the_samples_again(ledger: Database) -> None:
    steps.commit_steps(ledger, "policy", [step(1, "f0")], "one", 0.0)
    steps.commit_steps(ledger, "policy", [step(2, "f1"), step(3, "f2")], "three", 0.0)
    add_version(ledger, 1, 0, 1)
    add_version(ledger, 2, 1, 3, parent=1)
    recorder.record_feedback(ledger, [(make_thumb("f2-down", "c2", up=False, second=9), 9)], 0.0)
    assert steps.roll_back(ledger, "policy", 1, 0.0) == 2
    ids = [s.sample_id for s in ready.take_samples(ledger, "kto", 9)[0]]
    # f2 was replaced by a newer thumb while it was used; it must not come back beside it.
    assert ids == ["f1", "f3", "f4", "f5", "f2-down"]
    head = versions.head(ledger, "policy")
    assert head is not None
    assert head.version == 1
    assert versions.newest_version(ledger, "policy") == 2
    newest = steps.newest_step(ledger, "policy")
    assert newest is not None
    assert newest.step == 1


def test_a_version_owns_the_uses_since_its_parent(ledger: Database) -> None:
    steps.commit_steps(ledger, "policy", [step(1, "f0"), step(2, "f1")], "two", 0.0)
    learned = lineage.learned_from(ledger, "policy", 2)
    assert learned.samples == {"kto": 2}
    assert learned.oldest_feedback_time is not None
    add_version(ledger, 1, 0, 2)
    steps.commit_steps(ledger, "policy", [step(3, "f2")], "three", 0.0)
    add_version(ledger, 2, 2, 3, parent=1)
    assert [u.sample_id for u in lineage.uses_of(ledger, "policy", 1)] == ["f0", "f1"]
    assert [u.sample_id for u in lineage.uses_of(ledger, "policy", 2)] == ["f2"]
    assert lineage.ancestors(ledger, "policy", 2) == [1, 0]
    assert len(lineage.feedback_times(ledger, "policy", 1)) == 2


def test_the_evidence_since_a_version_is_the_sum_of_its_steps(ledger: Database) -> None:
    def worth(number: int, evidence: float | None, *, skipped: bool = False) -> steps.Step:
        metrics = {} if evidence is None else {"evidence": evidence}
        return steps.Step(step=number, samples={}, skipped=skipped, metrics=metrics)

    # A step of a run before evidence was measured counts as a full one, a skipped one as nothing.
    done = [worth(1, None), worth(2, 0.25), worth(3, 0.5, skipped=True), worth(4, 0.125)]
    steps.commit_steps(ledger, "policy", done, "four", 0.0)
    add_version(ledger, 1, 0, 1)
    add_version(ledger, 2, 1, 3, parent=1)
    add_version(ledger, 3, 3, 4, parent=2)
    found = [steps.evidence_since(ledger, 3, stable) for stable in (0, 1, 2, 3)]
    assert found == [1.375, 0.375, 0.125, 0.0]
    # Version 3 was taken back, and yet it serves: version 4 grew from version 2 beside it.
    steps.roll_back(ledger, "policy", 3, 0.0)
    steps.commit_steps(ledger, "policy", [worth(4, 0.75)], "again", 0.0)
    add_version(ledger, 4, 3, 4, parent=2)
    assert steps.evidence_since(ledger, 4, 3) == 0.75


def test_forgetting_a_user_leaves_nothing_of_theirs(ledger: Database) -> None:
    recorder.record_rollouts(ledger, [make_rollout("x1", user="u2"), make_rollout("x2")], 0.0)
    events = [
        make_thumb("g1", "x1", user="u2"),
        make_thumb("g2", "x2", user="u2"),
        make_comparison("g3", "x2", "x1", user="u3"),
    ]
    recorder.record_feedback(ledger, [(event, 1) for event in events], 0.0)
    recorder.record_scores(ledger, [make_score("x1")], 0.0)
    steps.commit_steps(ledger, "policy", [step(1, "f0", "g1")], "one", 0.0)
    add_version(ledger, 1, 0, 1)
    gone = forget_user.forget_user(ledger, "u2", 0.0)
    assert gone == forget_user.Forgotten(rollouts=1, feedback=3, policy_versions=(1,))
    with ledger.read() as connection:
        kept = set(connection.execute(select(feedback.c.feedback_id)).scalars())
        assert kept == {f"f{n}" for n in range(6)}
        assert "x1" not in connection.execute(select(rollouts.c.completion_id)).scalars().all()
        assert connection.execute(select(uses.c.sample_id)).scalars().all() == ["f0"]
    assert forget_user.row_counts(ledger)["scores"] == 0
    assert forget_user.forget_user(ledger, "u2", 0.0).rollouts == 0


def test_a_step_that_used_a_forgotten_sample_commits_without_it(ledger: Database) -> None:
    recorder.record_rollouts(ledger, [make_rollout("x1", user="u2")], 0.0)
    recorder.record_feedback(ledger, [(make_thumb("g1", "x1", user="u2"), 1)], 0.0)
    forget_user.forget_user(ledger, "u2", 0.0)
    assert steps.commit_steps(ledger, "policy", [step(1, "f0", "g1")], "one", 0.0) == 1


def test_a_ledger_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    database = Database.at(path)
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0099_later'"))
    database.close()
    with pytest.raises(SettingsError, match=r"revision 0099_later.*reads revisions up to 0"):
        Database.at(path)


def test_what_is_not_a_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(CorruptData, match="cannot be read as a ledger"):
        Database.at(tmp_path / "noise.db")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE accounts (id INTEGER)")
    with pytest.raises(CorruptData, match="not a ledger"):
        Database.at(tmp_path / "other.db")


def test_a_ledger_of_another_base_model_is_refused(ledger: Database) -> None:
    ledger.belongs_to({"base model": "abc"})
    ledger.belongs_to({"base model": "abc"})
    with pytest.raises(SettingsError, match="another data directory"):
        ledger.belongs_to({"base model": "def"})
