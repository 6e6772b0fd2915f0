"""Events to samples: joins in any order, votes, pairs, staleness."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from support.learner_events import (
    edit_tokens,
    make_comparison,
    make_edit,
    make_ranking,
    make_rating,
    make_rollout,
    make_score,
    make_thumb,
)

from tuneloop.feedback import Feedback
from tuneloop.learner.ledger.accounting import steps
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.events.sample_rules import SampleRules
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.ledger.schema import samples
from tuneloop.learner.samples import LabelledText, PairSample, PreferredText, ScoredSample
from tuneloop.rollouts import Rollout, ScoredRollout


@pytest.fixture
def ledger(tmp_path: Path) -> Database:
    return Database.at(tmp_path / "ledger.db")


def add(ledger: Database, *events: Any) -> None:
    for event in events:
        match event:
            case Rollout():
                recorder.record_rollouts(ledger, [event], 100.0)
            case Feedback():
                recorder.record_feedback(
                    ledger, [(event, 1)], 100.0, rules=SampleRules(scored_objective="grpo")
                )
            case ScoredRollout():
                recorder.record_scores(ledger, [event], 100.0)


def take(ledger: Database, objective: str) -> list[Any]:
    return ready.take_samples(ledger, objective, 100, edit_tokens=edit_tokens)[0]


def use(ledger: Database, step: int, **used: list[str]) -> None:
    done = steps.Step(step=step, samples=used, skipped=False, metrics={})
    steps.commit_steps(ledger, "policy", [done], f"step-{step:08d}", 0.0)


def test_a_thumb_before_its_rollout_waits_for_it(ledger: Database) -> None:
    add(ledger, make_thumb("f1", "c1", up=False))
    assert ready.counts(ledger, "kto") == ready.SampleCounts(ready=0, waiting=1, used=0)
    add(ledger, make_rollout("c1", prompt=(1, 2), completion=(3, 4), temperature=0.5))
    (sample,) = take(ledger, "kto")
    assert sample.sample_id == "f1"
    assert sample.desirable is False
    assert sample.sequence.prompt_token_ids == (1, 2)
    assert sample.sequence.completion_token_ids == (3, 4)
    # Preferences are compared at temperature 1, where the sampler's log-probs mean nothing.
    assert (sample.sequence.generation_logprobs, sample.sequence.temperature) == ((), 1.0)
    (label,) = take(ledger, "reward_model")
    assert label == LabelledText(sample_id="f1", prompt="Hi", completion="Hello.", desirable=False)


def test_events_that_come_twice_have_one_effect(ledger: Database) -> None:
    rollout, thumb, score = make_rollout("c1"), make_thumb("f1", "c1"), make_score("c1")
    assert recorder.record_rollouts(ledger, [rollout, rollout], 0.0) == 1
    assert recorder.record_rollouts(ledger, [rollout], 0.0) == 0
    assert recorder.record_feedback(ledger, [(thumb, 1), (thumb, 2)], 0.0) == [thumb]
    assert recorder.record_feedback(ledger, [(thumb, 3)], 0.0) == []
    assert recorder.record_scores(ledger, [score, score], 0.0) == 1
    assert len(take(ledger, "kto")) == len(take(ledger, "ppo")) == 1


def test_the_last_thumb_of_a_user_counts(ledger: Database) -> None:
    add(ledger, make_rollout("c1"))
    add(ledger, make_thumb("late", "c1", up=False, second=2), make_thumb("early", "c1", second=1))
    add(ledger, make_thumb("other", "c1", user="u2", second=0))
    assert [s.sample_id for s in take(ledger, "kto")] == ["other", "late"]


def test_a_used_thumb_stays_used_and_only_a_change_of_mind_counts_again(ledger: Database) -> None:
    add(ledger, make_rollout("c1"), make_thumb("up", "c1", second=1))
    use(ledger, 1, kto=["up"])
    add(ledger, make_thumb("up-again", "c1", second=2))
    assert take(ledger, "kto") == []
    add(ledger, make_thumb("down", "c1", up=False, second=3))
    assert [s.sample_id for s in take(ledger, "kto")] == ["down"]
    assert ready.counts(ledger, "kto").used == 1


def test_a_comparison_makes_a_pair_for_each_rejected_completion(ledger: Database) -> None:
    add(ledger, make_comparison("f1", "c1", "c2", "c3"))
    add(ledger, make_rollout("c1", completion=(4,)), make_rollout("c2", completion=(5, 6)))
    (pair,) = take(ledger, "dpo")
    assert isinstance(pair, PairSample)
    assert pair.sample_id == "f1"
    assert pair.chosen.completion_token_ids == (4,)
    assert pair.rejected.completion_token_ids == (5, 6)
    add(ledger, make_rollout("c3"))
    assert [s.sample_id for s in take(ledger, "dpo")] == ["f1", "f1.1"]
    assert all(isinstance(s, PreferredText) for s in take(ledger, "reward_model"))


def test_a_pair_of_different_prompts_is_refused_with_the_reason(ledger: Database) -> None:
    add(ledger, make_rollout("c1", prompt=(1, 2)), make_rollout("c2", prompt=(1, 3)))
    add(ledger, make_comparison("f1", "c1", "c2"))
    taken, refusals = ready.take_samples(ledger, "dpo", 10)
    assert taken == []
    assert refusals[0].reason == "the completions answer different prompts"
    ready.refuse(ledger, refusals)
    assert ready.take_samples(ledger, "dpo", 10) == ([], [])
    with ledger.read() as connection:
        query = select(samples.c.state, samples.c.note).where(samples.c.objective == "dpo")
        assert connection.execute(query).one() == ("refused", refusals[0].reason)


def test_opposite_thumbs_on_siblings_make_a_pair_until_the_user_changes_their_mind(
    ledger: Database,
) -> None:
    add(ledger, make_rollout("a", group_id="g"), make_thumb("f1", "a", second=1))
    add(ledger, make_thumb("f2", "b", up=False, second=2), make_rollout("b", group_id="g"))
    (pair,) = take(ledger, "dpo")
    assert pair.sample_id.startswith("siblings-")
    add(ledger, make_thumb("f3", "b", second=3))
    assert take(ledger, "dpo") == []
    add(ledger, make_thumb("f4", "b", up=False, second=4))
    (again,) = take(ledger, "dpo")
    assert (again.sample_id, again.chosen) == (pair.sample_id, pair.chosen)
    # Who keeps changing their mind is trusted less.
    assert again.flip_rate > pair.flip_rate == 0


def test_only_informative_scores_make_ppo_samples(ledger: Database) -> None:
    add(ledger, make_rollout("c1", version=3), make_rollout("c2"), make_rollout("c3"))
    add(ledger, make_score("c1", 0.5), make_score("c2", informative=False), make_score("c3", None))
    (sample,) = take(ledger, "ppo")
    assert isinstance(sample, ScoredSample)
    assert (sample.sample_id, sample.reward, sample.policy_version) == ("c1", 0.5, 3)
    assert sample.stopped


def test_a_rollout_sampled_greedily_is_no_ppo_sample(ledger: Database) -> None:
    add(ledger, make_rollout("c1", temperature=0.0), make_score("c1"), make_thumb("f1", "c1"))
    taken, refusals = ready.take_samples(ledger, "ppo", 10)
    assert taken == []
    assert "greedily" in refusals[0].reason
    assert take(ledger, "kto")[0].sequence.temperature == 1.0


def test_stale_rollouts_are_taken_out_once(ledger: Database) -> None:
    for version in range(3):
        add(ledger, make_rollout(f"c{version}", version=version), make_score(f"c{version}"))
    assert ready.mark_stale(ledger, "ppo", {2}, exclude=["c0"]) == 1
    assert ready.mark_stale(ledger, "ppo", {2}) == 1
    assert ready.mark_stale(ledger, "ppo", {2}) == 0
    assert [s.sample_id for s in take(ledger, "ppo")] == ["c2"]


EVENTS = [
    make_rollout("a", group_id="g"),
    make_rollout("b", group_id="g"),
    make_rollout("c", user="u2"),
    make_thumb("t1", "a", second=1),
    make_thumb("t2", "b", up=False, second=2),
    make_thumb("t3", "b", up=True, second=3),
    make_thumb("t4", "b", up=False, second=4),
    make_thumb("t5", "c", user="u2", second=4),
    make_thumb("t6", "c", user="u2", up=False, second=4),
    make_thumb("t7", "lost", second=5),
    make_comparison("p1", "a", "b", "lost", second=6),
    make_comparison("p2", "b", "a", second=7),
    make_ranking("k1", "a", "b", second=8),
    make_ranking("k2", "a", "b", "lost", user="u2", second=8),
    make_ranking("k3", "b", "a", second=7.5),
    make_edit("e1", "a", "once", second=1),
    make_edit("e2", "a", "twice", second=2),
    make_edit("e3", "a", "twice", second=3),
    make_rating("r1", "a", 3.0, second=1),
    make_rating("r2", "a", 5.0, second=2),
    make_rating("r3", "c", 1.0, user="u2", second=2),
    make_score("a", 0.25, informative=False, reward_model_version=0),
    make_score("a", 0.5, reward_model_version=1),
    make_score("a", 0.75, reward_model_version=2),
    make_score("c", 1.5),
]


def outcome(ledger: Database) -> dict[str, Any]:
    objectives = ("sft", "kto", "dpo", "ppo", "grpo", "reward_model")
    taken = {name: take(ledger, name) for name in objectives}
    with ledger.read() as connection:
        columns = ("sample_id", "objective", "state", "current", "weight")
        query = select(*(samples.c[name] for name in columns))
        taken["states"] = sorted(tuple(row) for row in connection.execute(query))
    return taken


@cache
def straight_outcome() -> dict[str, Any]:
    ledger = Database("sqlite://")
    add(ledger, *EVENTS)
    return outcome(ledger)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_order_and_any_repetition_of_events_gives_the_same_samples(data: st.DataObject) -> None:
    repeated = data.draw(st.lists(st.sampled_from(EVENTS), max_size=8))
    order = data.draw(st.permutations([*EVENTS, *repeated]))
    shuffled = Database("sqlite://")
    add(shuffled, *order)
    straight = straight_outcome()
    assert outcome(shuffled) == straight
    expected = {name: [s.sample_id for s in straight[name]] for name in ("kto", "sft")}
    assert expected == {"kto": ["t1", "t4", "t6"], "sft": ["e3"]}
