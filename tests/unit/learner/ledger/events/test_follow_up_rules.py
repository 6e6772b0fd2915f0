"""What users wrote after answers is found, judged once, and ends with either of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from support.learner_events import (
    START,
    edit_tokens,
    make_comment,
    make_signal,
    make_thumb,
    make_turn,
)

from tuneloop.feedback import Feedback, FeedbackKind, FollowUpLabel, Retraction
from tuneloop.learner.ledger.accounting import downstream, forget_user, retention, steps
from tuneloop.learner.ledger.accounting.forget_user import PersonalData
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import lifecycle, recorder
from tuneloop.learner.ledger.events.follow_up_rules import (
    SURE,
    FollowUp,
    Verdict,
    record_verdicts,
    waiting,
)
from tuneloop.learner.ledger.events.sample_rules import SampleRules
from tuneloop.learner.ledger.events.signal_rules import record_signals, sample_id_of
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.ledger.queue.replay import replays
from tuneloop.learner.ledger.reports import rater_votes
from tuneloop.learner.ledger.schema import follow_ups, samples, signals
from tuneloop.learner.samples import CommentedSample
from tuneloop.rollouts import ChatMessage, Rollout, RolloutSource

T0 = START.timestamp()
COMPLAINED = Verdict(label=FollowUpLabel.COMPLAINED, probability=SURE)


@pytest.fixture
def ledger(tmp_path: Path) -> Database:
    return Database.at(tmp_path / "ledger.db")


def follow(completion_id: str, text: str = "No, shorter.", **kwargs: Any) -> Rollout:
    """The second turn of a session, whose user wrote this."""
    turn = make_turn(completion_id, 1, **kwargs)
    *before, _ = turn.messages
    return replace(turn, messages=(*before, ChatMessage(role="user", content=text)))


def record(ledger: Database, *rollouts: Rollout, follow_ups: bool = True) -> None:
    for rollout in rollouts:
        recorder.record_rollouts(ledger, [rollout], T0, SampleRules(follow_ups_noted=follow_ups))


def judge(
    ledger: Database, *, learned: bool = True, hints: bool = True, **verdicts: Verdict
) -> int:
    return record_verdicts(ledger, verdicts, T0 + 99, learned=learned, hints=hints)


def comment(ledger: Database, *given: Feedback) -> None:
    events = [(event, 1) for event in given]
    recorder.record_feedback(ledger, events, T0, SampleRules(comments_train=True))


def rows(ledger: Database, table: Any) -> list[dict[str, Any]]:
    with ledger.read() as connection:
        return [dict(row._mapping) for row in connection.execute(select(table))]


def hints(ledger: Database) -> list[str]:
    """The hints that a step would take."""
    taken, refused = ready.take_samples(ledger, "sdft", 9, edit_tokens=edit_tokens)
    assert refused == []
    return [hint_of(sample) for sample in taken]


def hint_of(sample: Any) -> str:
    assert isinstance(sample, CommentedSample)
    length = len(sample.sequence.prompt_token_ids)
    return "".join(map(chr, sample.hinted_prompt_token_ids[length:]))


def states(ledger: Database) -> dict[str, str]:
    return {row["kind"]: row["state"] for row in rows(ledger, samples)}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_next_message_is_found_whichever_turn_is_recorded_first(
    ledger: Database, order: tuple[int, int]
) -> None:
    turns = (make_turn("c0", 0), follow("c1"))
    record(ledger, *(turns[place] for place in order))
    assert waiting(ledger, 9) == [
        FollowUp(completion_id="c0", question="Question 0", answer="Answer 0", text="No, shorter.")
    ]
    record(ledger, *turns)
    assert len(rows(ledger, follow_ups)) == 1


@pytest.mark.parametrize(
    "other",
    [
        follow("c1", session_id="s2"),
        follow("c1", tenant="other"),
        follow("c1", user="u2"),
        follow("c1", source=RolloutSource.PROMPTS),
        make_turn("c1", 0),
        make_turn("c1", 2),
        replace(follow("c1"), messages=(ChatMessage(role="user", content="New."),)),
        replace(
            follow("c1"),
            messages=(*follow("c1").messages[:2], ChatMessage(role="tool", content="7 degrees")),
        ),
    ],
    ids=[
        *("another session", "another tenant", "another user", "not a user's"),
        *("asked again", "two turns later", "another conversation"),
        "what a function returned",
    ],
)
def test_what_does_not_follow_is_no_follow_up(ledger: Database, other: Rollout) -> None:
    record(ledger, make_turn("c0", 0), other)
    assert rows(ledger, follow_ups) == []


def test_of_several_answers_the_one_that_was_gone_on_with_counts(ledger: Database) -> None:
    record(ledger, make_turn("a", 0, text="No."), make_turn("b", 0), make_turn("c", 0))
    record(ledger, follow("d"), follow("e", "Something else"))
    # b and c are the same answer, which was followed once; e asks the same place again.
    assert {(r["completion_id"], r["next_id"]) for r in rows(ledger, follow_ups)} == {("b", "d")}


def test_nothing_is_noted_where_they_are_off(ledger: Database) -> None:
    record(ledger, make_turn("c0", 0), follow("c1"), follow_ups=False)
    assert rows(ledger, follow_ups) == []


def test_each_is_judged_once_and_its_label_is_a_signal(ledger: Database) -> None:
    record(ledger, make_turn("c0", 0), follow("c1"), make_turn("c2", 2))
    assert [one.completion_id for one in waiting(ledger, 1)] == ["c0"]
    satisfied = Verdict(label=FollowUpLabel.SATISFIED, probability=0.5)
    assert judge(ledger, c0=satisfied, unknown=satisfied) == 1
    assert judge(ledger, c0=COMPLAINED) == 0
    assert waiting(ledger, 9) == []
    (label,) = rows(ledger, signals)
    assert (label["completion_id"], label["kind"], label["user_hash"]) == ("c0", "satisfied", "u1")
    assert (label["api_key_id"], label["accepted_time"]) == ("judge", T0 + 1)
    (sample,) = rows(ledger, samples)
    assert (sample["sample_id"], sample["objective"]) == (sample_id_of("c0", "u1"), "signals")
    (noted,) = rows(ledger, follow_ups)
    assert (noted["label"], noted["probability"]) == ("satisfied", 0.5)


def test_what_a_judge_cannot_read_is_not_asked_again(ledger: Database) -> None:
    record(ledger, make_turn("c0", 0), follow("c1"))
    assert judge(ledger, c0=Verdict(label=None, note="too long")) == 1
    assert waiting(ledger, 9) == []
    assert rows(ledger, signals) == []
    assert rows(ledger, samples) == []


def test_an_answer_to_a_message_that_was_answered_is_no_new_follow_up(ledger: Database) -> None:
    """A restart takes events in again; a label stays as it is."""
    turns = (make_turn("c0", 0), follow("c1"))
    record(ledger, *turns)
    judge(ledger, c0=COMPLAINED)
    before = [rows(ledger, table) for table in (follow_ups, signals, samples)]
    record(ledger, *turns, follow("again"))
    judge(ledger, c0=COMPLAINED)
    assert [rows(ledger, table) for table in (follow_ups, signals, samples)] == before


@pytest.mark.parametrize(
    ("label", "probability", "expected"),
    [
        ("complained", 0.8, ["No, shorter."]),
        ("corrected", 0.95, ["No, shorter."]),
        ("corrected", 0.79, []),
        ("satisfied", 1.0, []),
    ],
)
def test_a_sure_complaint_is_a_hint(
    ledger: Database, label: str, probability: float, expected: list[str]
) -> None:
    record(ledger, make_turn("c0", 0), follow("c1"))
    verdict = Verdict(label=FollowUpLabel(label), probability=probability)
    judge(ledger, learned=False, c0=verdict)
    assert hints(ledger) == expected
    assert len(rows(ledger, samples)) == len(expected)


def test_it_is_none_where_comments_do_not_train(ledger: Database) -> None:
    record(ledger, make_turn("c0", 0), follow("c1"))
    judge(ledger, hints=False, c0=COMPLAINED)
    assert hints(ledger) == []
    assert [row["kind"] for row in rows(ledger, signals)] == ["complained"]


@pytest.mark.parametrize("first", ["comment", "follow-up"])
def test_a_comment_on_the_answer_wins(ledger: Database, first: str) -> None:
    record(ledger, make_turn("c0", 0), follow("c1"))

    def be_judged() -> None:
        judge(ledger, learned=False, c0=COMPLAINED)

    # The message came a second after the comment, or long before it.
    second = 0.5 if first == "comment" else 500
    given = make_comment("m", "c0", "in one word", second=second)
    calls: list[Callable[[], None]] = [be_judged, lambda: comment(ledger, given)]
    for call in calls if first == "follow-up" else reversed(calls):
        call()
    assert hints(ledger) == ["in one word"]
    assert states(ledger) == {"comment": "open", "follow_up": "superseded"}
    taken = Retraction(
        feedback_id="m",
        kind=FeedbackKind.COMMENT,
        policy="tuneloop",
        tenant="default",
        user_hash="u1",
        retracted_time=START,
    )
    lifecycle.record_retractions(ledger, [(taken, 2)], T0)
    # As if it had never been given.
    assert hints(ledger) == ["No, shorter."]


def test_a_hint_that_was_learned_is_replayed_and_traced_to_its_version(ledger: Database) -> None:
    record(ledger, make_turn("c0", 0), follow("c1"))
    judge(ledger, learned=False, c0=COMPLAINED)
    (sample,) = rows(ledger, samples)
    used = {"sdft": [sample["sample_id"]]}
    done = steps.Step(step=1, samples=used, skipped=False, metrics={})
    steps.commit_steps(ledger, "policy", [done], "step-1", T0)
    assert hints(ledger) == []
    (again,) = replays(ledger, "sdft", 9, seed="", edit_tokens=edit_tokens)
    assert hint_of(again) == "No, shorter."
    assert downstream.of_user(ledger, "u1").samples == {"used": 1}
    # A comment that comes later is learned as well: it differs.
    comment(ledger, make_comment("m", "c0", "in one word", second=9))
    assert hints(ledger) == ["in one word"]


def test_it_weighs_what_a_comment_of_the_same_user_would(ledger: Database) -> None:
    record(ledger, make_turn("c0", 0), follow("c1"))
    comment(ledger, make_comment("m", "elsewhere", "hm", second=0.5))
    judge(ledger, learned=False, c0=COMPLAINED)
    (hint,) = [row for row in rows(ledger, samples) if row["kind"] == "follow_up"]
    name = hint["sample_id"]
    assert rater_votes.numbers(ledger, "sdft", [name], 60.0) == {name: 2}
    owner = rater_votes.owners(ledger, "sdft", [name])[name]
    assert (owner.user, owner.tenant, owner.has_judged) == ("u1", "default", True)
    # It is not said again: a thumb that comes later is the third judgement.
    recorder.record_rollouts(ledger, [make_turn("c9", 0, session_id="")], T0)
    recorder.record_feedback(ledger, [(make_thumb("f", "c9", second=5), 1)], T0)
    assert rater_votes.numbers(ledger, "kto", ["f"], 60.0) == {"f": 3}


@pytest.mark.parametrize("session", [False, True])
def test_it_is_forgotten_with_its_user_or_its_session(ledger: Database, session: bool) -> None:
    record(ledger, make_turn("c0", 0), follow("c1"), make_turn("b0", 0, user="u2", session_id="x"))
    record_signals(ledger, [(make_signal("b0", user="u2"), 1)], T0, learned=False)
    judge(ledger, c0=COMPLAINED)
    assert downstream.of_user(ledger, "u1").signals == 1
    data = (
        PersonalData(tenant="default", session_id="s") if session else PersonalData(user_hash="u1")
    )
    forget_user.forget(ledger, data, T0 + 60)
    assert rows(ledger, follow_ups) == []
    assert rows(ledger, samples) == []
    assert [row["completion_id"] for row in rows(ledger, signals)] == ["b0"]
    # What its judge says now comes too late, and so do its rollouts.
    assert judge(ledger, c0=COMPLAINED) == 0
    record(ledger, make_turn("c0", 0), follow("c1"))
    assert rows(ledger, follow_ups) == []


def test_it_ends_with_old_rollouts(ledger: Database) -> None:
    record(ledger, make_turn("c0", 0), follow("c1"), make_turn("c2", 2))
    judge(ledger, c0=COMPLAINED)
    (hint,) = [row for row in rows(ledger, samples) if row["kind"] == "follow_up"]
    # The message that an open hint quotes is kept as long as the answer.
    pruned = retention.prune_rollouts(ledger, T0 + 0.5, None)
    assert (pruned.deleted, hints(ledger)) == (1, [])
    assert rows(ledger, samples) == []
    assert retention.prune_rollouts(ledger, T0 + 50, None).deleted == 2
    assert rows(ledger, follow_ups) == []
    assert hint["rejected_id"] == "c1"


def test_a_used_hint_lets_its_message_go(ledger: Database) -> None:
    record(ledger, make_turn("c0", 0), follow("c1"))
    judge(ledger, learned=False, c0=COMPLAINED)
    (sample,) = rows(ledger, samples)
    done = steps.Step(step=1, samples={"sdft": [sample["sample_id"]]}, skipped=False, metrics={})
    steps.commit_steps(ledger, "policy", [done], "step-1", T0)
    assert retention.prune_rollouts(ledger, T0 + 50, None).emptied == 1
    assert retention.prune_rollouts(ledger, T0 + 50, None).deleted == 1
    assert states(ledger) == {"follow_up": "expired"}


def test_it_expires_by_its_age_as_comments_do(ledger: Database) -> None:
    record(ledger, make_turn("c0", 0), follow("c1"))
    judge(ledger, learned=False, c0=COMPLAINED)
    lifecycle.expire_feedback(ledger, T0 + 11, max_age=9, rollout_wait=None)
    assert states(ledger) == {"follow_up": "expired"}
    assert hints(ledger) == []
