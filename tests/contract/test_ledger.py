"""The ledger on both databases: one suite, and equal answers to equal lives."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from support.learner_events import edit_tokens, make_rollout, make_thumb
from support.ledger_drift import drift_of
from support.ledger_life import (
    EVENTS,
    FEEDBACK,
    ROLLOUTS,
    everything,
    learn,
    retraction_of,
    take_in,
)
from support.postgres_server import Postgres

from tuneloop.errors import FailedPrecondition, NotFound, SettingsError
from tuneloop.learner.ledger import migration
from tuneloop.learner.ledger.accounting import forget_user, quarantine, steps, versions
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import lifecycle, recorder
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.ledger.schema import metadata, rollouts


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.database()


@pytest.fixture
def ledger(url: str) -> Iterator[Database]:
    database = Database(url, writer=True)
    yield database
    database.close()


def test_its_tables_are_those_of_the_code_made_at_once_or_revision_by_revision(
    ledger: Database, url: str
) -> None:
    assert drift_of(ledger) == []
    with ledger.write() as connection:
        metadata.drop_all(connection)
        connection.exec_driver_sql("DROP TABLE alembic_version")
        command.upgrade(migration.configuration(connection), "head")
    assert drift_of(ledger) == []
    ledger.close()
    assert Database(url).fact("nothing") is None


def test_a_ledger_of_a_newer_release_is_refused(ledger: Database, url: str) -> None:
    with ledger.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0099_later'")
    ledger.close()
    with pytest.raises(SettingsError, match=r"revision 0099_later.*newer release") as caught:
        Database(url)
    assert "postgres:@" not in caught.value.message


def test_an_event_that_comes_twice_has_one_effect(ledger: Database) -> None:
    take_in(ledger, EVENTS)
    once = everything(ledger)
    take_in(ledger, EVENTS)
    assert everything(ledger) == once
    assert once["rows"]["rollouts"] == len(ROLLOUTS)
    of_turns = ["s1.turn0", "s1.turn1"]
    assert [sample.sample_id for sample in once["kto"][2]] == [*of_turns, "t1", "t2", "t4", "t5"]


def test_all_of_a_transaction_is_kept_or_nothing(ledger: Database) -> None:
    twice = [steps.Step(step=1, samples={}, skipped=False, metrics={})] * 2
    with pytest.raises(IntegrityError):
        steps.commit_steps(ledger, "policy", twice, "checkpoint", 0.0)
    assert steps.newest_step(ledger, "policy") is None
    ledger.set_fact("works", "still")
    assert ledger.fact("works") == "still"


def test_a_read_sees_one_state_of_the_ledger(ledger: Database) -> None:
    count = select(func.count()).select_from(rollouts)
    with ledger.read() as reading:
        assert reading.execute(count).scalar_one() == 0
        recorder.record_rollouts(ledger, ROLLOUTS, 0.0)
        assert reading.execute(count).scalar_one() == 0
    with ledger.read() as reading:
        assert reading.execute(count).scalar_one() == len(ROLLOUTS)


def test_every_use_counts_once_and_can_be_undone(ledger: Database) -> None:
    take_in(ledger, EVENTS)
    learn(ledger)
    assert ready.counts(ledger, "kto").used == 4
    assert versions.stable_version(ledger, "policy") == 2
    assert steps.roll_back(ledger, "policy", 0, 200.0) > 4
    again = ready.take_samples(ledger, "kto", 9)[0]
    # That of the prompt held out meanwhile is not learned from any more.
    of_turns = ["s1.turn0", "s1.turn1"]
    assert [sample.sample_id for sample in again] == ["t1", "t2", "t4", *of_turns]
    assert ready.counts(ledger, "kto").used == 0
    assert versions.head(ledger, "policy") is None


def test_what_a_quarantined_version_learned_from_is_put_back(ledger: Database) -> None:
    take_in(ledger, EVENTS)
    learn(ledger)
    used = ready.counts(ledger, "kto").used
    with ledger.write() as connection:
        quarantine.mark_quarantined(
            connection, 2, 2, reason="bad", numbers={}, actor="x", kind="quarantine", now=106.0
        )
    done = quarantine.put_back(ledger, 107.0, 2)
    assert done is not None
    assert done.good == 1
    assert ready.counts(ledger, "kto").used < used
    assert quarantine.put_back(ledger, 108.0, 2) is None


def test_a_user_is_forgotten(ledger: Database) -> None:
    take_in(ledger, EVENTS)
    learn(ledger)
    gone = forget_user.forget_user(ledger, "u1", 200.0)
    assert gone.rollouts == 2
    assert gone.policy_versions == (1, 2)
    assert {line.user_hash for line in rows(ledger)} == {"u2", "u3", "u6", "learner"}


def rows(ledger: Database) -> list[Any]:
    with ledger.read() as connection:
        return list(connection.execute(select(rollouts)))


def test_feedback_ends(ledger: Database) -> None:
    take_in(ledger, EVENTS)
    first = FEEDBACK[0]
    assert lifecycle.record_retractions(ledger, [(retraction_of(first), 1)], 0.0) == 1
    lasting = [event for event in FEEDBACK if event.kind in ("comment", "metric")]
    ended = lifecycle.expire_feedback(ledger, 1e12, max_age=1.0, rollout_wait=1.0)
    assert ended == len(FEEDBACK) - len([first, *lasting])
    assert ready.take_samples(ledger, "kto", 9)[0] == []


def test_texts_with_a_nul_are_kept_without_it(ledger: Database) -> None:
    recorder.record_rollouts(ledger, [make_rollout("n", text="before\0after")], 0.0)
    assert rows(ledger)[0].completion_text == "before\N{REPLACEMENT CHARACTER}after"


def test_what_is_not_there_is_not_found(ledger: Database) -> None:
    with pytest.raises(NotFound):
        versions.get_version(ledger, "policy", 1)


def test_whose_it_is_does_not_change(ledger: Database) -> None:
    ledger.belongs_to({"base model": "abc"})
    with pytest.raises(SettingsError, match="another data directory"):
        ledger.belongs_to({"base model": "def"})


def empty(ledger: Database) -> None:
    with ledger.write() as connection:
        for table in reversed(metadata.sorted_tables):
            if table.name != "facts":
                connection.execute(delete(table))


@pytest.fixture(scope="module")
def server_ledger(postgres: Postgres) -> Iterator[Database]:
    database = Database(postgres.database(), writer=True)
    yield database
    database.close()


@pytest.mark.parametrize("seed", range(3))
def test_both_databases_give_the_same_answers(seed: int, server_ledger: Database) -> None:
    chance = random.Random(seed)
    order = [*EVENTS, *map(retraction_of, chance.sample(FEEDBACK, seed))]
    chance.shuffle(order)
    split = chance.randrange(len(order))
    empty(server_ledger)
    answers = []
    for ledger in (Database("sqlite://"), server_ledger):
        take_in(ledger, order[:split])
        learn(ledger)
        take_in(ledger, order[split:])
        answers.append(everything(ledger))
    for question, answer in answers[0].items():
        assert answers[1][question] == answer, question


def test_a_second_learner_is_kept_out(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneloop.learner.ledger.database.LOCK_SECONDS", 0.2)
    url = postgres.database()
    first = Database(url, writer=True)
    with pytest.raises(FailedPrecondition, match="another learner works on the ledger"):
        Database(url, writer=True)
    # Who only reads is welcome.
    assert Database(url).fact("writer") == "1"
    first.close()
    second = Database(url, writer=True)
    assert second.fact("writer") == "2"
    second.close()


def test_a_learner_that_lost_its_lock_to_another_writes_nothing_more(postgres: Postgres) -> None:
    url = postgres.database()
    first = Database(url, writer=True)
    cut_off(postgres, url)
    second = Database(url, writer=True)
    with pytest.raises(FailedPrecondition, match="another learner"):
        recorder.record_feedback(first, [(make_thumb("t1", "a"), 1)], 0.0)
    second.close()
    # Its lock is free again, but its number is not the newest.
    with pytest.raises(FailedPrecondition, match="has taken the ledger"):
        recorder.record_feedback(first, [(make_thumb("t1", "a"), 1)], 0.0)
    assert ready.counts(first, "kto").waiting == 0
    first.close()


def test_a_learner_goes_on_after_its_connections_were_lost(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneloop.learner.ledger.database.LOCK_SECONDS", 0.2)
    url = postgres.database()
    ledger = Database(url, writer=True)
    recorder.record_rollouts(ledger, ROLLOUTS, 0.0)
    cut_off(postgres, url)
    recorder.record_feedback(ledger, [(FEEDBACK[0], 1)], 0.0)
    assert len(ready.take_samples(ledger, "kto", 9, edit_tokens=edit_tokens)[0]) == 1
    with pytest.raises(FailedPrecondition):
        Database(url, writer=True)
    ledger.close()


def cut_off(server: Postgres, url: str) -> None:
    """End every session of a database, as a restart or a broken network would."""
    name = url.split("?", maxsplit=1)[0].rsplit("/", 1)[-1]
    server.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        f" WHERE datname = '{name}' AND pid <> pg_backend_pid()"
    )
