"""Feedback that ends: retracted before or after it is recorded, used or not; and expired."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from support.learner_events import (
    START,
    edit_tokens,
    make_comment,
    make_comparison,
    make_edit,
    make_metric,
    make_ranking,
    make_rating,
    make_rollout,
    make_thumb,
)

from tuneloop.feedback import Feedback, Retraction
from tuneloop.learner.ledger.accounting import forget_user, steps
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import lifecycle, recorder
from tuneloop.learner.ledger.events.sample_rules import SampleRules
from tuneloop.learner.ledger.queue import agreement, ready
from tuneloop.learner.ledger.queue.ratings import read as read_ratings
from tuneloop.learner.ledger.queue.replay import replays
from tuneloop.learner.ledger.schema import feedback, retractions, samples, uses

OBJECTIVES = ("sft", "kto", "dpo", "reward_model")
COMMENTS = SampleRules(comments_train=True)
START_SECONDS = START.timestamp()
DAY = 86_400.0


@pytest.fixture
def ledger(tmp_path: Path) -> Database:
    return Database.at(tmp_path / "ledger.db")


def give(ledger: Database, *events: Feedback, now: float = START_SECONDS) -> None:
    recorder.record_feedback(ledger, [(event, n) for n, event in enumerate(events)], now)


def retraction_of(event: Feedback) -> Retraction:
    return Retraction(
        feedback_id=event.feedback_id,
        kind=event.kind,
        policy=event.policy,
        tenant=event.tenant,
        user_hash=event.user_hash,
        retracted_time=START,
    )


def retract(ledger: Database, *events: Feedback) -> int:
    taken = [(retraction_of(event), 100 + n) for n, event in enumerate(events)]
    return lifecycle.record_retractions(ledger, taken, START_SECONDS)


def answers(ledger: Database, *ids: str, **kwargs: Any) -> None:
    recorder.record_rollouts(ledger, [make_rollout(i, **kwargs) for i in ids], START_SECONDS)


def ready_ids(ledger: Database) -> dict[str, list[str]]:
    found = {}
    for objective in OBJECTIVES:
        taken, _ = ready.take_samples(ledger, objective, 99, edit_tokens=edit_tokens)
        found[objective] = [sample.sample_id for sample in taken]
    return {objective: ids for objective, ids in found.items() if ids}


def states(ledger: Database) -> dict[tuple[str, str], str]:
    with ledger.read() as connection:
        query = select(samples.c.sample_id, samples.c.objective, samples.c.state)
        return {(row[0], row[1]): row[2] for row in connection.execute(query)}


def statuses(ledger: Database) -> dict[str, str]:
    with ledger.read() as connection:
        query = select(feedback.c.feedback_id, feedback.c.status)
        return {row[0]: row[1] for row in connection.execute(query)}


def use(ledger: Database, number: int, objective: str, *ids: str) -> int:
    step = steps.Step(step=number, samples={objective: ids}, skipped=False, metrics={})
    return steps.commit_steps(ledger, "policy", [step], f"step-{number}", START_SECONDS)


EVERY_KIND = [
    make_thumb("t", "a"),
    make_rating("r", "a", 4.0),
    make_comparison("c", "a", "b", "d"),
    make_ranking("k", "a", "b", "d"),
    make_edit("e", "a", "Better."),
    make_comment("m", "a", "hm"),
    make_metric("f", "a", "task_solved", True),
]


@pytest.mark.parametrize("event", EVERY_KIND, ids=lambda event: event.kind.value)
@pytest.mark.parametrize(
    "order", list(itertools.permutations(("feedback", "retraction", "rollouts")))
)
def test_a_retraction_wins_whenever_it_comes(
    ledger: Database, event: Feedback, order: tuple[str, ...]
) -> None:
    for what in order:
        if what == "feedback":
            give(ledger, event)
        elif what == "retraction":
            assert retract(ledger, event) == 1
        else:
            answers(ledger, "a", "b", "d")
    assert ready_ids(ledger) == {}
    assert set(states(ledger).values()) <= {"retracted"}
    assert statuses(ledger) == {event.feedback_id: "retracted"}
    # All of it again changes nothing.
    give(ledger, event)
    assert retract(ledger, event) == 0
    assert ready_ids(ledger) == {}


def test_what_was_said_before_counts_again(ledger: Database) -> None:
    answers(ledger, "a")
    up, down = make_thumb("up", "a"), make_thumb("down", "a", False, second=1)
    give(ledger, up, down)
    assert ready_ids(ledger)["kto"] == ["down"]
    retract(ledger, down)
    assert ready_ids(ledger)["kto"] == ["up"]
    retract(ledger, up)
    assert ready_ids(ledger) == {}


def test_after_training_the_use_stays_on_record_and_nothing_is_used_again(
    ledger: Database,
) -> None:
    answers(ledger, "a", "b")
    one, other = make_thumb("one", "a"), make_thumb("other", "b")
    give(ledger, one, other)
    use(ledger, 1, "kto", "one", "other")
    retract(ledger, one)
    again = replays(ledger, "kto", 9, seed="")
    assert [sample.sample_id for sample in again] == ["other"]
    assert ready.counts(ledger, "kto").used == 2
    # Going back undoes the step, not the retraction.
    assert steps.roll_back(ledger, "policy", 0, START_SECONDS) == 2
    assert ready_ids(ledger)["kto"] == ["other"]
    assert states(ledger)["one", "kto"] == "retracted"
    use(ledger, 1, "kto", "other")
    with ledger.read() as connection:
        assert list(connection.execute(select(uses.c.sample_id)).scalars()) == ["other"]


def test_retracted_while_the_step_that_uses_it_runs(ledger: Database) -> None:
    answers(ledger, "a")
    event = make_thumb("t", "a")
    give(ledger, event)
    retract(ledger, event)
    assert use(ledger, 1, "kto", "t") == 1
    assert states(ledger)["t", "kto"] == "retracted"
    assert replays(ledger, "kto", 9, seed="") == []


def test_a_pair_of_siblings_ends_with_either_thumb(ledger: Database) -> None:
    answers(ledger, "a", "b", group_id="g", n=2)
    up, down = make_thumb("up", "a"), make_thumb("down", "b", False)
    give(ledger, up, down)
    [pair] = ready_ids(ledger)["dpo"]
    retract(ledger, down)
    assert ready_ids(ledger) == {"kto": ["up"], "reward_model": ["up"]}
    assert states(ledger)[pair, "dpo"] == "superseded"
    give(ledger, make_thumb("again", "b", False, second=5))
    assert ready_ids(ledger)["dpo"] == [pair]
    use(ledger, 1, "dpo", pair)
    retract(ledger, up)
    assert replays(ledger, "dpo", 9, seed="") == []
    assert states(ledger)[pair, "dpo"] == "used"


def test_a_retracted_verdict_says_nothing_of_raters(ledger: Database) -> None:
    answers(ledger, "a")
    first, second = make_rating("r1", "a", 1.0), make_rating("r2", "a", 5.0, second=1)
    up, down = make_thumb("t1", "a", user="u1"), make_thumb("t2", "a", False, user="u2")
    give(ledger, first, second, up, down)
    with ledger.read() as connection:
        assert agreement.flip_rate(connection) > 0
    retract(ledger, second, down)
    with ledger.read() as connection:
        assert agreement.flip_rate(connection) == 0
        assert read_ratings(connection).standardised("u1", 1.0) == 0.0


def test_forgetting_a_user_forgets_their_retractions(ledger: Database) -> None:
    event = make_thumb("t", "a", user="u7")
    retract(ledger, event)
    forget_user.forget_user(ledger, "u7", 0.0)
    with ledger.read() as connection:
        assert connection.execute(select(retractions)).all() == []


def expire(ledger: Database, days: float, **limits: float | None) -> int:
    seconds = {"max_age": None, "rollout_wait": None} | limits
    return lifecycle.expire_feedback(ledger, START_SECONDS + days * DAY, **seconds)


def test_old_feedback_expires(ledger: Database) -> None:
    answers(ledger, "a", "b", "d")
    give(ledger, *EVERY_KIND)
    assert expire(ledger, 2, max_age=3 * DAY) == 0
    assert expire(ledger, 4, max_age=3 * DAY) == 5
    assert expire(ledger, 4, max_age=3 * DAY) == 0
    assert ready_ids(ledger) == {}
    assert statuses(ledger) == dict.fromkeys("trcke", "expired") | dict.fromkeys("mf", "accepted")
    # Taken back all the same.
    retract(ledger, EVERY_KIND[0])
    assert statuses(ledger)["t"] == "retracted"
    assert states(ledger)["t", "kto"] == "retracted"


def test_a_comment_that_trains_expires_and_is_taken_back_like_a_thumb(ledger: Database) -> None:
    answers(ledger, "a", "b")
    old, kept = make_comment("old", "a", "hm"), make_comment("kept", "b", "hm")
    recorder.record_feedback(ledger, [(kept, 0)], START_SECONDS)
    recorder.record_feedback(ledger, [(old, 1)], START_SECONDS, rules=COMMENTS)
    new = make_comment("new", "a", "hm", second=9 * DAY, user="u2")
    recorder.record_feedback(ledger, [(new, 2)], START_SECONDS, rules=COMMENTS)
    assert expire(ledger, 10, max_age=3 * DAY) == 1
    assert statuses(ledger) == {"old": "expired", "kept": "accepted", "new": "accepted"}
    taken, _ = ready.take_samples(ledger, "sdft", 9, edit_tokens=edit_tokens)
    assert [sample.sample_id for sample in taken] == ["new"]
    use(ledger, 1, "sdft", "new")
    retract(ledger, new)
    assert states(ledger)["new", "sdft"] == "retracted"
    assert replays(ledger, "sdft", 9, seed="", edit_tokens=edit_tokens) == []


def test_what_was_used_is_too_old_to_replay(ledger: Database) -> None:
    answers(ledger, "a", "b")
    give(ledger, make_thumb("old", "a"), make_thumb("new", "b", second=9 * DAY))
    use(ledger, 1, "kto", "old", "new")
    expire(ledger, 10, max_age=3 * DAY)
    since = START_SECONDS + 7 * DAY
    found = replays(ledger, "kto", 9, seed="", not_before=since)
    assert [sample.sample_id for sample in found] == ["new"]
    assert ready.counts(ledger, "kto").used == 2


def test_feedback_whose_rollout_never_came_expires(ledger: Database) -> None:
    answers(ledger, "a", "b")
    give(
        ledger,
        make_thumb("waits", "x"),
        make_thumb("has", "a"),
        make_comparison("c", "a", "b", "x"),
    )
    assert expire(ledger, 6, rollout_wait=7 * DAY) == 0
    expire(ledger, 8, rollout_wait=7 * DAY)
    assert statuses(ledger) == {"waits": "expired", "has": "accepted", "c": "accepted"}
    assert ready_ids(ledger)["dpo"] == ["c"]
    assert ready.counts(ledger, "dpo").waiting == 0
    answers(ledger, "x")
    assert ready_ids(ledger)["kto"] == ["has"], "it does not come back"


def test_the_wait_counts_from_when_the_ledger_learned_of_it(ledger: Database) -> None:
    give(ledger, make_thumb("t", "a"), now=START_SECONDS + 30 * DAY)
    assert expire(ledger, 31, rollout_wait=7 * DAY) == 0
    answers(ledger, "a")
    assert ready_ids(ledger)["kto"] == ["t"]


def test_an_expired_last_word_is_still_the_last_word(ledger: Database) -> None:
    # The later one was recorded first, as after a redelivery.
    give(ledger, make_thumb("later", "a", False, second=9))
    give(ledger, make_thumb("earlier", "a"), now=START_SECONDS + 2 * DAY)
    expire(ledger, 2, rollout_wait=1.5 * DAY)
    answers(ledger, "a")
    assert ready_ids(ledger) == {}
    assert states(ledger)["earlier", "kto"] == "superseded"


def test_an_expired_thumb_ends_its_pair(ledger: Database) -> None:
    answers(ledger, "a", "b", group_id="g", n=2)
    give(ledger, make_thumb("up", "a"), make_thumb("down", "b", False, second=9 * DAY))
    assert len(ready_ids(ledger)["dpo"]) == 1
    expire(ledger, 10, max_age=3 * DAY)
    assert ready_ids(ledger) == {"kto": ["down"], "reward_model": ["down"]}
