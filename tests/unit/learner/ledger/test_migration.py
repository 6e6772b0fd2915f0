"""Ledgers of earlier schema versions, made by what wrote them, are brought up to date."""

import sqlite3
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, select, text, update
from support.learner_events import (
    edit_tokens,
    make_comparison,
    make_ranking,
    make_rollout,
    make_thumb,
)
from support.ledger_drift import drift_of

from tuneloop.feedback import Retraction
from tuneloop.learner.ledger import migration
from tuneloop.learner.ledger.accounting import steps
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import lifecycle, recorder
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.ledger.rows import prompt_sha256
from tuneloop.learner.ledger.schema import feedback, rollouts, samples
from tuneloop.learner.samples import PairSample, PreferredText, RankedText, RatedText

DUMP = Path(__file__).parents[3] / "support" / "ledger_v1.sql"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(DUMP.read_text())
    return path


def ready_ids(ledger: Database, objective: str) -> list[str]:
    taken, refusals = ready.take_samples(ledger, objective, 99, edit_tokens=edit_tokens)
    assert refusals == []
    return [sample.sample_id for sample in taken]


def test_every_event_it_holds_can_be_learned_from(old: Path) -> None:
    ledger = Database.at(old)
    assert ledger.fact("schema_version") is None
    assert ledger.fact("base model") == "abc"
    assert ready_ids(ledger, "kto") == ["t2", "t4", "t6"]
    assert ready.counts(ledger, "kto").used == 2
    assert ready_ids(ledger, "sft") == ["e1"]
    # b over a was said last; the refused comparison of different prompts stays refused.
    siblings, ranked, edited = ready_ids(ledger, "dpo")
    assert siblings.startswith("siblings-")
    assert (ranked, edited) == ("k1.0-1", "e1")
    assert ready_ids(ledger, "ppo") == ["a"]
    texts, _ = ready.take_samples(ledger, "reward_model", 99)
    kinds = {sample.sample_id: type(sample) for sample in texts}
    assert (kinds["r1"], kinds["r2"], kinds["k1"]) == (RatedText, RatedText, RankedText)
    assert ready.unreported(ledger, 9) == []


def test_rollouts_are_described(old: Path) -> None:
    ledger = Database.at(old)
    with ledger.read() as connection:
        query = select(rollouts.c.completion_id, rollouts.c.group_size, rollouts.c.prompt_sha256)
        found = {row[0]: (row[1], row[2]) for row in connection.execute(query)}
        assert found["a"] == (2, prompt_sha256((1, 5, 6)))
        assert found["c"] == (1, prompt_sha256((1, 7)))
        assert set(connection.execute(select(rollouts.c.source)).scalars()) == {"user"}


def test_the_schema_is_the_one_a_new_ledger_has(old: Path, tmp_path: Path) -> None:
    assert drift_of(Database.at(old)) == []
    assert drift_of(Database.at(tmp_path / "new.db")) == []


def test_used_samples_stay_used_and_a_roll_back_still_works(old: Path) -> None:
    ledger = Database.at(old)
    assert steps.roll_back(ledger, "policy", 0, 0.0) == 2
    # t3 was replaced by t4, so only t1 comes back.
    assert ready_ids(ledger, "kto") == ["t1", "t2", "t4", "t6"]


def test_a_crash_in_the_middle_leaves_the_old_ledger(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(connection: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(migration, "learn_from_all", die)
        with pytest.raises(KeyboardInterrupt):
            Database.at(old)
    with sqlite3.connect(old) as connection:
        query = "SELECT value FROM facts WHERE name = 'schema_version'"
        assert connection.execute(query).fetchone() == ("1",)
    ledger = Database.at(old)
    assert ready_ids(ledger, "kto") == ["t2", "t4", "t6"]
    with ledger.read() as connection:
        assert connection.execute(text("PRAGMA integrity_check")).scalar_one() == "ok"
        assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
        assert len(set(connection.execute(select(samples.c.kind)).scalars())) == 7


SECOND = Path(__file__).parents[3] / "support" / "ledger_v2.sql"


def test_from_version_2_feedback_can_be_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(SECOND.read_text())
    ledger = Database.at(path)
    before = {objective: ready_ids(ledger, objective) for objective in ("kto", "dpo", "sft", "ppo")}
    assert before["kto"] == ["t2", "t4"]
    assert before["sft"] == ["e1"]
    assert before["ppo"] == ["a"]
    siblings, *named = before["dpo"]
    assert siblings.startswith("siblings-")
    assert named == ["p1", "k1.0-1", "e1"]
    assert ready.counts(ledger, "kto").waiting == 1
    with ledger.read() as connection:
        assert set(connection.execute(select(feedback.c.status)).scalars()) == {"accepted"}
    event = make_thumb("t2", "b", False, second=1)
    taken = Retraction(
        feedback_id="t2",
        kind=event.kind,
        policy=event.policy,
        tenant=event.tenant,
        user_hash=event.user_hash,
        retracted_time=event.accepted_time,
    )
    assert lifecycle.record_retractions(ledger, [(taken, 11)], 0.0) == 1
    assert ready_ids(ledger, "dpo") == named
    assert drift_of(ledger) == []


def test_from_version_3_on_the_revisions_are_alembics(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        command.upgrade(migration.configuration(connection), "0003_feedback_ends")
        connection.execute(text("DROP TABLE alembic_version"))
        connection.execute(text("INSERT INTO facts VALUES ('schema_version', '3')"))
    ledger = Database.at(path)
    # Releases that went by the number refuse a ledger without one.
    assert ledger.fact("schema_version") is None
    assert drift_of(ledger) == []


def test_the_revisions_are_one_line() -> None:
    scripts = ScriptDirectory(str(migration.FOLDER))
    assert scripts.get_heads() == [migration.newest()]
    for script in scripts.walk_revisions():
        assert Path(script.path).stem == script.revision


def test_pairs_of_one_judgement_weigh_one_in_an_older_ledger(tmp_path: Path) -> None:
    """Before, each pair of a comparison and each pair of opposite thumbs weighed 1."""
    path = tmp_path / "ledger.db"
    ledger = Database.at(path)
    names = [f"{mood}{n}" for mood in ("up", "down") for n in range(4)]
    answers = [make_rollout(name, group_id="g", n=8) for name in names]
    recorder.record_rollouts(ledger, answers, 0.0)
    thumbs = [(make_thumb(f"f-{name}", name, name[0] == "u"), n) for n, name in enumerate(names)]
    best_of_4 = make_comparison("best", *names[:4], user="u2")
    ranking = make_ranking("order", *names[:3], user="u3")
    recorder.record_feedback(ledger, [*thumbs, (best_of_4, 8), (ranking, 9)], 0.0)
    with ledger.write() as connection:
        connection.execute(update(samples).where(samples.c.kind != "ranking").values(weight=1.0))
        connection.exec_driver_sql("DROP INDEX versions_parent")
        # What later revisions add.
        for table in ("effects", "signals", "follow_ups"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
        connection.exec_driver_sql("ALTER TABLE samples DROP COLUMN features")
        indices = ("feedback_user_time", "feedback_key", "feedback_key_id", "rollouts_time")
        sessions = ("rollouts_session", "feedback_session", "forgotten_session")
        for index in (*indices, *sessions):
            connection.exec_driver_sql(f"DROP INDEX {index}")
        for column in ("api_key_id", "api_key_name", "session_id"):
            connection.exec_driver_sql(f"ALTER TABLE feedback DROP COLUMN {column}")
        for column in ("session_id", "reasoning_text", "reasoning_tokens", "tags"):
            connection.exec_driver_sql(f"ALTER TABLE rollouts DROP COLUMN {column}")
        for column in ("tenant", "session_id"):
            connection.exec_driver_sql(f"ALTER TABLE forgotten DROP COLUMN {column}")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0006_metrics'")
    ledger.close()
    ledger = Database.at(path)
    pairs = ready.take_samples(ledger, "dpo", 99)[0]
    weights: dict[str, list[float]] = {}
    for pair in pairs:
        assert isinstance(pair, PairSample)
        weights.setdefault(pair.sample_id[:5], []).append(pair.weight)
    assert weights["sibli"] == [1 / 16] * 16
    assert weights["best"[:5]] + weights["best."] == [1 / 3] * 3
    assert weights["order"] == [1 / 3] * 3
    found = ready.take_samples(ledger, "reward_model", 99)[0]
    assert [s.weight for s in found if isinstance(s, PreferredText)] == [1 / 3] * 3
    assert [s.weight for s in found if isinstance(s, RankedText)] == [1.0]
    assert drift_of(ledger) == []
