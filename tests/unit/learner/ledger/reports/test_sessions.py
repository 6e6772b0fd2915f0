"""A session is looked up with what learned from it, and forgotten like a user."""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import select
from support.learner_events import START, make_metric, make_score, make_thumb, make_turn

from tuneloop.errors import NotFound
from tuneloop.learner.ledger.accounting import forget_user, steps, versions
from tuneloop.learner.ledger.accounting.downstream import Downstream
from tuneloop.learner.ledger.accounting.forget_user import PersonalData
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.reports import sessions
from tuneloop.learner.ledger.schema import feedback, rollouts
from tuneloop.rollouts import RolloutSource

NOW = START.timestamp() + 60
SESSION = PersonalData(tenant="default", session_id="s")
look_up = partial(sessions.of_session, policy="tuneloop", tenant="default", session_id="s")


@pytest.fixture
def ledger(tmp_path: Path) -> Database:
    """Two turns of Ann, one of which Bob judged; version 1 learned of her thumb on the session."""
    database = Database.at(tmp_path / "ledger.db")
    turns = [make_turn(f"c{n}", n, user="ann", version=n) for n in range(2)]
    others = [make_turn("o", 0, user="ann", session_id="o"), make_turn("t", 0, tenant="other")]
    recorder.record_rollouts(database, [*turns, *others], 0.0)
    recorder.record_scores(database, [make_score("c0"), make_score("o")], 0.0)
    given = [
        make_thumb("bob", "c0", False, user="bob", second=2),
        make_thumb("ann", "", user="ann", session_id="s", second=9),
        make_metric("solved", "", "solved", True, user="ann", session_id="s", second=10),
        make_thumb("other", "", user="ann", session_id="o", second=11),
    ]
    recorder.record_feedback(database, [(event, n) for n, event in enumerate(given)], 0.0)
    used = {"kto": ["ann.c0", "ann.c1"]}
    step = steps.Step(step=1, samples=used, skipped=False, metrics={})
    steps.commit_steps(database, "policy", [step], "step-1", 0.0)
    versions.add_version(
        database,
        model="policy",
        version=1,
        policy="tuneloop",
        parent=0,
        first_step=0,
        last_step=1,
        manifest="{}",
        created_time=datetime.now(UTC),
    )
    return database


def left(ledger: Database) -> tuple[list[str], list[str]]:
    """Return the rollouts and the feedback that there are."""
    with ledger.read() as connection:
        return (
            sorted(connection.execute(select(rollouts.c.completion_id)).scalars()),
            sorted(connection.execute(select(feedback.c.feedback_id)).scalars()),
        )


def test_it_has_its_turns_what_was_said_and_what_learned_from_that(ledger: Database) -> None:
    found = look_up(ledger)
    assert [
        (a.completion_id, a.policy_version, a.feedback_ids, a.used_by_versions)
        for a in found.answers
    ] == [("c0", 0, ("bob",), (1,)), ("c1", 1, (), (1,))]
    assert [entry.feedback.feedback_id for entry in found.feedback] == ["bob", "ann", "solved"]
    assert found.feedback[1].used_by_versions == (1,)
    # What is shown of a session is its last turn.
    bob, ann, _ = found.feedback
    assert ann.completions[-1].completion_id == "c1"
    assert len(ann.messages) > len(bob.messages)
    assert found.reached.policy == Downstream(direct=(1,))
    assert found.reached.rebuild_from == 0


def test_another_tenants_session_of_that_name_is_another_one(ledger: Database) -> None:
    found = look_up(ledger, tenant="other")
    assert [answer.completion_id for answer in found.answers] == ["t"]
    with pytest.raises(NotFound, match="no session 'never'"):
        look_up(ledger, session_id="never")


def test_it_is_forgotten_with_all_that_was_said_of_it(ledger: Database) -> None:
    gone = forget_user.forget(ledger, SESSION, NOW)
    assert gone == forget_user.Forgotten(rollouts=2, feedback=3, policy_versions=(1,))
    assert left(ledger) == (["o", "t"], ["other"])
    assert forget_user.row_counts(ledger) == {
        **{"rollouts": 2, "feedback": 1, "scores": 1, "signals": 0},
        **{"samples": 3, "uses": 0},
    }
    found = look_up(ledger)
    assert (found.answers, found.feedback) == ((), ())
    assert found.reached.policy == Downstream(direct=(1,))
    assert [record.forgotten for record in found.reached.forgotten] == [gone]


def test_what_was_on_its_way_when_it_was_forgotten_is_not_recorded(ledger: Database) -> None:
    forget_user.forget(ledger, SESSION, NOW)
    late = [make_turn("late", 2, second=59), make_turn("later", 3, second=61)]
    assert recorder.record_rollouts(ledger, late, 0.0) == 1
    said = make_thumb("f", "", session_id="s", second=59)
    assert recorder.record_feedback(ledger, [(said, 9)], 0.0) == []
    assert left(ledger) == (["later", "o", "t"], ["other"])


def test_a_forgotten_user_takes_the_judgements_of_their_sessions_along(ledger: Database) -> None:
    metric = make_metric("by-app", "", "solved", True, user="app", session_id="s", second=12)
    recorder.record_feedback(ledger, [(metric, 9)], 0.0)
    assert set(forget_user.feedback_to_erase(ledger, PersonalData(user_hash="ann"))) == {
        "bob",
        "by-app",
    }
    assert forget_user.forget_user(ledger, "ann", NOW).feedback == 5
    assert left(ledger) == (["t"], [])


def test_candidates_that_were_not_answered_are_no_turns_and_are_forgotten(
    ledger: Database,
) -> None:
    other = make_turn("c1.1", 1, user="ann", group_id="group-c1", source=RolloutSource.CANDIDATE)
    recorder.record_rollouts(ledger, [other], 0.0)
    found = look_up(ledger)
    assert [answer.completion_id for answer in found.answers] == ["c0", "c1"]
    assert forget_user.forget(ledger, SESSION, NOW).rollouts == 3
    assert "c1.1" not in left(ledger)[0]
