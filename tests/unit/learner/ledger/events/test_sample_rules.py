"""Every kind of feedback becomes the samples the design says, and changes of mind are kept."""

import re
from pathlib import Path
from typing import Any

import pytest
from support.learner_events import (
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

from tuneloop.feedback import Feedback
from tuneloop.learner.ledger.accounting import forget_user, steps
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.events.sample_rules import SampleRules
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.ledger.queue.replay import replays
from tuneloop.learner.samples import (
    CommentedSample,
    DemonstrationSample,
    PairSample,
    PreferredText,
    RankedText,
    RatedText,
)
from tuneloop.rollouts import Rollout

GRPO = SampleRules(scored_objective="grpo")
COMMENTS = SampleRules(comments_train=True)


@pytest.fixture
def ledger(tmp_path: Path) -> Database:
    return Database.at(tmp_path / "ledger.db")


def add(ledger: Database, *events: Rollout | Feedback) -> None:
    for event in events:
        if isinstance(event, Rollout):
            recorder.record_rollouts(ledger, [event], 100.0)
        else:
            recorder.record_feedback(ledger, [(event, 1)], 100.0, rules=GRPO)


def take(ledger: Database, objective: str) -> list[Any]:
    return ready.take_samples(ledger, objective, 100, edit_tokens=edit_tokens)[0]


def ids(ledger: Database, objective: str) -> list[str]:
    return [sample.sample_id for sample in take(ledger, objective)]


def use(ledger: Database, step: int, objective: str, *sample_ids: str) -> None:
    done = steps.Step(step=step, samples={objective: sample_ids}, skipped=False, metrics={})
    steps.commit_steps(ledger, "policy", [done], f"step-{step}", 0.0)


def test_an_edit_is_a_demonstration_and_preferred_to_the_answer(ledger: Database) -> None:
    add(ledger, make_edit("e1", "c1", "ab"))
    assert take(ledger, "sft") == []
    add(ledger, make_rollout("c1", prompt=(1, 5), completion=(7, 8, 2), temperature=0.5))
    (demonstration,) = take(ledger, "sft")
    assert isinstance(demonstration, DemonstrationSample)
    edited = demonstration.sequence
    assert edited.prompt_token_ids == (1, 5)
    assert edited.completion_token_ids == (97, 98, 2)
    assert (edited.generation_logprobs, edited.temperature) == ((), 1.0)
    (pair,) = take(ledger, "dpo")
    assert isinstance(pair, PairSample)
    assert (pair.chosen, pair.rejected.completion_token_ids) == (edited, (7, 8, 2))
    (text,) = take(ledger, "reward_model")
    assert text == PreferredText(sample_id="e1", prompt="Hi", chosen="ab", rejected="Hello.")


def test_an_edit_that_changes_nothing_is_no_preference(ledger: Database) -> None:
    add(ledger, make_rollout("c1", text="same"), make_edit("e1", "c1", "same"))
    assert len(take(ledger, "sft")) == 1
    taken, refusals = ready.take_samples(ledger, "dpo", 9, edit_tokens=edit_tokens)
    assert taken == []
    assert refusals[0].reason == "the edit is the answer as it was"


def test_a_ranking_is_all_its_pairs_and_one_order(ledger: Database) -> None:
    add(ledger, *(make_rollout(c, text=c, completion=(n, 2)) for n, c in enumerate("xyz")))
    add(ledger, make_ranking("k1", "y", "x", "z", "w"))
    # The pairs without w can be learned from; the order as a whole waits.
    pairs = take(ledger, "dpo")
    assert [p.sample_id for p in pairs] == ["k1.0-1", "k1.0-2", "k1.1-2"]
    assert [p.weight for p in pairs] == [1 / 6] * 3
    assert pairs[1].chosen.completion_token_ids == (1, 2)
    assert pairs[1].rejected.completion_token_ids == (2, 2)
    assert take(ledger, "reward_model") == []
    assert ready.counts(ledger, "reward_model").waiting == 1
    add(ledger, make_rollout("w", text="w"))
    (order,) = take(ledger, "reward_model")
    assert order == RankedText(sample_id="k1", prompt="Hi", completions=("y", "x", "z", "w"))
    assert len(take(ledger, "dpo")) == 6


def test_ratings_are_standardised_by_user(ledger: Database) -> None:
    add(ledger, *(make_rollout(f"c{n}") for n in range(4)))
    add(ledger, *(make_rating(f"r{n}", f"c{n}", float(n), second=n) for n in range(4)))
    rated = take(ledger, "reward_model")
    assert all(isinstance(sample, RatedText) for sample in rated)
    # Mean 1.5, variance 1.25; the crowd is this one user.
    assert [s.rating for s in rated] == pytest.approx([(n - 1.5) / 1.25**0.5 for n in range(4)])


def test_comments_and_metrics_are_only_kept(ledger: Database) -> None:
    add(ledger, make_rollout("c1"), make_comment("m1", "c1", "hm"))
    add(ledger, make_metric("m2", "c1", "task_solved", True))
    assert forget_user.row_counts(ledger)["feedback"] == 2
    assert forget_user.row_counts(ledger)["samples"] == 0


def comment(ledger: Database, *events: Feedback) -> None:
    """Record comments where they train."""
    given = [(event, number) for number, event in enumerate(events)]
    recorder.record_feedback(ledger, given, 100.0, rules=COMMENTS)


def test_a_comment_is_a_hint_where_comments_train(ledger: Database) -> None:
    comment(ledger, make_comment("m1", "c1", "ab"))
    assert take(ledger, "sdft") == []
    assert ready.counts(ledger, "sdft").waiting == 1
    add(ledger, make_rollout("c1", prompt=(1, 5), completion=(7, 8, 2), temperature=0.5))
    (commented,) = take(ledger, "sdft")
    assert isinstance(commented, CommentedSample)
    assert commented.sequence.prompt_token_ids == (1, 5)
    assert commented.sequence.completion_token_ids == (7, 8, 2)
    assert commented.sequence.temperature == 1.0
    assert commented.hinted.prompt_token_ids == (1, 5, 97, 98)
    assert commented.hinted.completion_token_ids == (7, 8, 2)
    assert forget_user.row_counts(ledger)["samples"] == 1, "it is nothing to other objectives"


def test_the_last_comment_of_a_user_on_an_answer_counts(ledger: Database) -> None:
    add(ledger, make_rollout("a"), make_rollout("b"))
    comment(
        ledger,
        make_comment("m1", "a", "too long"),
        make_comment("m2", "a", "no tables", second=1),
        make_comment("m3", "a", "too long", second=2, user="u2"),
        make_comment("m4", "b", "too long", second=3),
    )
    assert ids(ledger, "sdft") == ["m2", "m3", "m4"]
    use(ledger, 1, "sdft", "m2", "m3", "m4")
    comment(ledger, make_comment("m5", "a", "no tables", second=4))
    assert ids(ledger, "sdft") == [], "said again"
    assert {s.sample_id for s in replays(ledger, "sdft", 9, seed="", edit_tokens=edit_tokens)} == {
        "m2",
        "m3",
        "m4",
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("  \n", "the comment is empty"),
        ("x" * 501, "501 characters; a hint has 500 at most"),
        ("shorter\u202e", r"does not show \(U\+202E\)"),
        ("shorter\x00", "does not show"),
    ],
)
def test_what_is_no_remark_is_refused_and_told(ledger: Database, text: str, reason: str) -> None:
    add(ledger, make_rollout("c1"))
    comment(ledger, make_comment("m1", "c1", text))
    taken, [refusal] = ready.take_samples(ledger, "sdft", 9, edit_tokens=edit_tokens)
    assert taken == []
    assert re.search(reason, refusal.reason)
    ready.refuse(ledger, [refusal])
    assert [r.sample_id for r in ready.unreported(ledger, 9)] == ["m1"]
    assert take(ledger, "sdft") == []


def test_the_last_edit_rating_and_comparison_of_a_user_count(ledger: Database) -> None:
    add(ledger, make_rollout("a", text="A"), make_rollout("b", text="B"))
    add(ledger, make_edit("e2", "a", "two", second=2), make_edit("e1", "a", "one", second=1))
    add(ledger, make_rating("r1", "a", 1, second=1), make_rating("r2", "a", 5, second=2))
    assert ids(ledger, "sft") == ["e2"]
    add(ledger, make_comparison("p1", "a", "b", second=1))
    add(ledger, make_comparison("p2", "b", "a", second=2))
    assert ids(ledger, "dpo") == ["e2", "p2"]
    assert sorted(ids(ledger, "reward_model")) == ["e2", "p2", "r2"]
    # A ranking of the same two says the same in another way.
    add(ledger, make_ranking("k1", "a", "b", second=3))
    assert ids(ledger, "dpo") == ["e2", "k1.0-1"]
    use(ledger, 1, "dpo", "k1.0-1")
    add(ledger, make_comparison("p3", "a", "b", second=4))
    assert ids(ledger, "dpo") == ["e2"]
    add(ledger, make_comparison("p4", "b", "a", second=5))
    assert ids(ledger, "dpo") == ["e2", "p4"]


def test_only_what_is_still_meant_is_replayed_and_what_was_replayed_least(
    ledger: Database,
) -> None:
    add(ledger, *(make_rollout(f"c{n}") for n in range(6)))
    add(ledger, *(make_thumb(f"f{n}", f"c{n}", second=n) for n in range(6)))
    use(ledger, 1, "kto", *(f"f{n}" for n in range(5)))
    add(ledger, make_thumb("not-any-more", "c0", up=False, second=9))
    again = replays(ledger, "kto", 99, seed="1")
    assert {sample.sample_id for sample in again} == {"f1", "f2", "f3", "f4"}
    assert replays(ledger, "kto", 99, seed="1") == again
    assert len(replays(ledger, "kto", 2, seed="1", exclude=["f1"])) == 2
    step = steps.Step(
        step=2, samples={"kto": ["f5"]}, replayed={"kto": ["f1", "f2"]}, skipped=False, metrics={}
    )
    assert steps.commit_steps(ledger, "policy", [step], "two", 0.0) == 3
    assert ready.counts(ledger, "kto").used == 6
    assert {s.sample_id for s in replays(ledger, "kto", 3, seed="1")} == {"f3", "f4", "f5"}
    # Undoing the replay opens nothing again: the first uses stand.
    assert steps.roll_back(ledger, "policy", 1, 0.0) == 3
    assert ids(ledger, "kto") == ["f5", "not-any-more"]


def test_old_labels_come_again_as_often_as_new_ones(ledger: Database) -> None:
    count = 60
    add(ledger, *(make_rollout(f"c{n}") for n in range(count)))
    add(ledger, *(make_thumb(f"f{n}", f"c{n}", second=n) for n in range(count)))
    old, new = [f"f{n}" for n in range(30)], [f"f{n}" for n in range(30, count)]
    use(ledger, 1, "reward_model", *old)
    again = steps.Step(
        step=2,
        samples={"reward_model": new},
        replayed={"reward_model": old},
        skipped=False,
        metrics={},
    )
    steps.commit_steps(ledger, "reward_model", [again], "two", 0.0)
    # The least used would all be new.
    drawn = replays(ledger, "reward_model", 30, seed="1", at_random=True)
    assert 8 <= sum(sample.sample_id in old for sample in drawn) <= 22
    assert replays(ledger, "reward_model", 30, seed="1", at_random=True) == drawn
    assert replays(ledger, "reward_model", 30, seed="2", at_random=True) != drawn


def test_forgetting_takes_rankings_of_others_that_name_their_completions(ledger: Database) -> None:
    add(ledger, make_rollout("mine", user="u1"), make_rollout("theirs", user="u2"))
    add(ledger, make_ranking("k1", "mine", "theirs", user="u1"), make_edit("e1", "mine", "x"))
    gone = forget_user.forget_user(ledger, "u2", 0.0)
    assert (gone.rollouts, gone.feedback) == (1, 1)
    assert ids(ledger, "dpo") == ["e1"]
