"""A metric as the reward of policy gradients: which values count, and on what scale."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.learner_events import (
    START,
    make_metric,
    make_rating,
    make_rollout,
    make_score,
    make_turn,
)
from support.learner_parts import Parts

from tuneloop.feedback import PUBLIC_ID, Feedback, Retraction
from tuneloop.learner.app.resources import sample_rules
from tuneloop.learner.batching.trust import Trust
from tuneloop.learner.guards.settings import GuardSettings
from tuneloop.learner.ledger.accounting import downstream, forget_user, steps
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import lifecycle, recorder
from tuneloop.learner.ledger.events.sample_rules import CreditRule, SampleRules, SessionCredit
from tuneloop.learner.ledger.queue import groups, ready
from tuneloop.learner.ledger.reports.traffic import traffic
from tuneloop.learner.samples import ScoredGroup, ScoredSample
from tuneloop.learner.trainer.advantages import group_advantages
from tuneloop.rollouts import Rollout, ScoredRollout

NOW = START.timestamp()
GRPO = SampleRules(scored_objective="grpo", reward_metric="solved")
PPO = SampleRules(scored_objective="ppo", reward_metric="solved")
solved = partial(make_metric, name="solved")


@pytest.fixture
def ledger(tmp_path: Path) -> Database:
    return Database.at(tmp_path / "ledger.db")


def add(ledger: Database, *events: Any, rules: SampleRules = GRPO) -> None:
    for number, event in enumerate(events):
        match event:
            case Rollout():
                recorder.record_rollouts(ledger, [event], NOW, rules)
            case Feedback():
                recorder.record_feedback(ledger, [(event, number)], NOW, rules)
            case ScoredRollout():
                recorder.record_scores(ledger, [event], NOW, rules)


def grpo(ledger: Database, *, now: float = NOW, **options: Any) -> list[ScoredGroup]:
    return groups.take_groups(ledger, 99, now=now, wait_seconds=60.0, **options)[0]


def ppo(ledger: Database, **options: Any) -> list[ScoredSample]:
    taken = ready.take_samples(ledger, "ppo", 99, **options)[0]
    return [sample for sample in taken if isinstance(sample, ScoredSample)]


def rewards(ledger: Database, *, now: float = NOW, **options: Any) -> dict[str, float]:
    """Return the reward of each sample, GRPO's or PPO's."""
    members = [member for group in grpo(ledger, now=now, **options) for member in group.samples]
    return {sample.sample_id: sample.reward for sample in [*members, *ppo(ledger, **options)]}


def choices(n: int, group_id: str = "g", **kwargs: Any) -> list[Rollout]:
    """Return the choices of one request."""
    names = [f"{group_id}{number}" for number in range(n)]
    return [make_rollout(name, group_id=group_id, n=n, **kwargs) for name in names]


def taken_back(event: Feedback) -> tuple[Retraction, int]:
    retraction = Retraction(
        feedback_id=event.feedback_id,
        kind=event.kind,
        policy=event.policy,
        tenant=event.tenant,
        user_hash=event.user_hash,
        retracted_time=START,
    )
    return retraction, 9


def test_what_was_measured_of_the_choices_of_a_request_is_a_group(ledger: Database) -> None:
    add(ledger, *choices(4), *(solved(f"m{n}", f"g{n}", value=n == 0) for n in range(4)))
    [group] = grpo(ledger)
    assert (group.baseline, group.cut_share) == (None, 0.0)
    # Mean 1/4, variance 3/16, so that true is √3 deviations above it and false 1/√3 below.
    expected = [math.sqrt(3), *[-1 / math.sqrt(3)] * 3]
    assert [member.reward for member in group.samples] == pytest.approx(expected)
    # The scale is no matter within a group: (1 - 1/4) / (1/2) and (0 - 1/4) / (1/2).
    raw = group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    assert raw.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-3)
    given = group_advantages(torch.tensor([member.reward for member in group.samples]))
    assert given.tolist() == pytest.approx(raw.tolist(), rel=1e-3)


def test_a_group_waits_for_the_rest_of_what_is_measured_of_it(ledger: Database) -> None:
    add(ledger, *choices(3), solved("m0", "g0", value=1.0), solved("m1", "g1", value=3.0))
    assert grpo(ledger) == []
    assert groups.readiness(ledger, now=NOW + 59, wait_seconds=60.0).count == 0
    [group] = grpo(ledger, now=NOW + 60)
    assert [member.sample_id for member in group.samples] == ["m0", "m1"]
    add(ledger, solved("m2", "g2", value=2.0))
    [group] = grpo(ledger)
    assert [member.reward for member in group.samples] == pytest.approx(
        [-math.sqrt(1.5), math.sqrt(1.5), 0.0]
    )


def test_one_alone_is_compared_with_the_mean_of_its_user(ledger: Database) -> None:
    add(ledger, *choices(3), solved("m0", "g0", value=True))
    add(ledger, make_rollout("a"), solved("m1", "a", value=False))
    # The group may wait for its other choices; the request for one answer waits for nothing.
    assert [group.sample_id for group in grpo(ledger)] == ["m1"]
    alone = {group.sample_id: group for group in grpo(ledger, now=NOW + 60)}
    assert {group.baseline for group in alone.values()} == {0.0}
    assert rewards(ledger, now=NOW + 60) == pytest.approx({"m0": 1.0, "m1": -1.0})


def test_users_and_types_are_groups_of_their_own(ledger: Database) -> None:
    add(ledger, *choices(2))
    for user in ("ann", "bob"):
        add(ledger, *(solved(f"{user}{n}", f"g{n}", value=n == 0, user=user) for n in range(2)))
    add(ledger, *(solved(f"x{n}", f"g{n}", value=50.0 + n, user="ann") for n in range(2)))
    members = [sorted(m.sample_id for m in group.samples) for group in grpo(ledger)]
    assert sorted(members) == [["ann0", "ann1"], ["bob0", "bob1"], ["x0", "x1"]]
    expected = {"ann0": 1.0, "ann1": -1.0, "bob0": 1.0, "bob1": -1.0, "x0": -1.0, "x1": 1.0}
    assert rewards(ledger) == pytest.approx(expected), "a number is no boolean's other value"


@pytest.mark.parametrize("rules", [GRPO, PPO])
def test_it_is_the_only_reward(ledger: Database, rules: SampleRules) -> None:
    names = ("a", "b", "c")
    add(ledger, *(make_rollout(name) for name in names), rules=rules)
    add(ledger, *(make_score(name, 5.0) for name in names), rules=rules)
    add(ledger, make_rating("r", "a", 4.0), make_metric("m", "a", "seconds", 3.0), rules=rules)
    assert rewards(ledger) == {}
    add(ledger, *(solved(f"m{n}", names[n], value=float(n)) for n in range(3)), rules=rules)
    deviations = math.sqrt(1.5)
    assert rewards(ledger) == pytest.approx({"m0": -deviations, "m1": 0.0, "m2": deviations})
    # The rest teaches what it always does.
    assert ready.counts(ledger, "reward_model").ready == 1


@pytest.mark.parametrize("rules", [GRPO, PPO])
def test_of_some_metrics_less_is_better(ledger: Database, rules: SampleRules) -> None:
    add(ledger, make_rollout("a"), make_rollout("b"), rules=rules)
    add(ledger, solved("fast", "a", value=0.5), solved("slow", "b", value=8.0), rules=rules)
    assert rewards(ledger) == pytest.approx({"fast": -1.0, "slow": 1.0})
    assert rewards(ledger, higher_is_better=False) == pytest.approx({"fast": 1.0, "slow": -1.0})


def test_a_value_far_off_is_worth_three_deviations(ledger: Database) -> None:
    add(ledger, *(make_rollout(f"c{n}") for n in range(21)))
    values = [1.0, 2.0] * 10 + [999_999_999.0]
    add(ledger, *(solved(f"m{n:02}", f"c{n}", value=value) for n, value in enumerate(values)))
    assert rewards(ledger)["m20"] == 3.0


@pytest.mark.parametrize("rules", [GRPO, PPO])
def test_the_last_value_counts_and_the_one_before_where_it_is_taken_back(
    ledger: Database, rules: SampleRules
) -> None:
    first = solved("m0", "a", value=False)
    changed = solved("m1", "a", value=True, second=1)
    add(ledger, make_rollout("a"), make_rollout("b"), rules=rules)
    add(ledger, solved("other", "b", value=False), changed, first, first, changed, rules=rules)
    assert rewards(ledger) == pytest.approx({"m1": 1.0, "other": -1.0})
    lifecycle.record_retractions(ledger, [taken_back(changed)], NOW)
    # Both of the user's answers failed.
    assert rewards(ledger) == {"m0": 0.0, "other": 0.0}
    late = taken_back(solved("m2", "a", value=True))
    lifecycle.record_retractions(ledger, [late], NOW)
    add(ledger, solved("m2", "a", value=True, second=2), rules=rules)
    assert set(rewards(ledger)) == {"m0", "other"}


@pytest.mark.parametrize("objective", ["grpo", "ppo"])
def test_what_was_learned_is_not_learned_again_unless_it_differs(
    ledger: Database, objective: str
) -> None:
    rules = replace(GRPO, scored_objective=objective)
    add(ledger, make_rollout("a"), solved("m0", "a", value=True), rules=rules)
    done = steps.Step(step=1, samples={objective: ["m0"]}, skipped=False, metrics={})
    steps.commit_steps(ledger, "policy", [done], "step-1", NOW)
    add(ledger, solved("m0", "a", value=True), rules=rules)
    add(ledger, solved("m1", "a", value=True, second=1), rules=rules)
    assert rewards(ledger) == {}
    add(ledger, solved("m2", "a", value=False, second=2), rules=rules)
    assert set(rewards(ledger)) == {"m2"}
    [sample] = downstream.of_feedback(ledger, "m0").samples
    assert (sample.objective, sample.state) == (objective, "used")


def test_a_session_is_measured_once(ledger: Database) -> None:
    rules = replace(PPO, credit=CreditRule(credit=SessionCredit.DISCOUNTED, discount=0.5))
    add(ledger, make_turn("c0", 0), make_turn("c1", 1), make_rollout("a"), rules=rules)
    of_session = solved("s", "", value=True, session_id="s", second=9)
    add(ledger, of_session, solved("m", "a", value=False), rules=rules)
    # One value of two is true: the mean is 1/2, the deviation 1/2.
    assert rewards(ledger) == pytest.approx({"s.c0": 1.0, "s.c1": 1.0, "m": -1.0})
    weights = {sample.sample_id: sample.weight for sample in ppo(ledger)}
    assert weights == pytest.approx({"s.c0": 1 / 3, "s.c1": 2 / 3, "m": 1.0})
    add(ledger, solved("own", "c1", value=False, second=1), rules=rules)
    assert set(rewards(ledger)) == {"s.c0", "own", "m"}, "what is said of a turn itself comes first"


def test_choices_of_a_turn_are_no_group_where_their_session_is_measured(ledger: Database) -> None:
    for name in ("a", "b"):
        add(ledger, make_turn(name, 0, text="No.", group_id="g", n=2))
    add(ledger, make_turn("c", 1))
    add(ledger, solved("s", "", value=1.0, session_id="s", second=9))
    add(ledger, make_rollout("x"), solved("m", "x", value=3.0))
    found = {group.sample_id: group for group in grpo(ledger)}
    assert set(found) == {"s.a", "s.b", "s.c", "m"}
    assert {group.baseline for group in found.values()} == {0.0}
    weights = {name: group.samples[0].weight for name, group in found.items()}
    assert weights == {"s.a": 0.25, "s.b": 0.25, "s.c": 0.5, "m": 1.0}


def test_what_anybody_may_send_is_no_reward(ledger: Database) -> None:
    add(ledger, *(make_rollout(name, user=f"u-{name}") for name in "abc"))
    given = {"a": True, "b": False, "c": False}
    own = [solved(f"m-{c}", c, value=v, user=f"u-{c}") for c, v in given.items()]
    page = replace(own[2], api_key_id=PUBLIC_ID)
    add(ledger, *own[:2], page)
    # A lone value of a user whose crowd has mean 1/2 and variance 1/4: mean 3/4, variance 3/16.
    assert rewards(ledger) == pytest.approx({"m-a": 1 / math.sqrt(3), "m-b": -1 / math.sqrt(3)})
    [figures] = traffic(ledger, [0])[0].metrics
    assert figures.count == 3, "it is shown all the same"


def test_it_expires_as_what_is_learned_from_does(ledger: Database) -> None:
    add(ledger, make_rollout("a"), solved("m", "a", value=True))
    add(ledger, make_metric("kept", "a", "seconds", 3.0), solved("lost", "never", value=True))
    day = 86_400.0
    assert lifecycle.expire_feedback(ledger, NOW + 8 * day, max_age=None, rollout_wait=day) == 1
    assert set(rewards(ledger)) == {"m"}
    assert lifecycle.expire_feedback(ledger, NOW + 9 * day, max_age=day, rollout_wait=None) == 1
    assert rewards(ledger) == {}
    figures = {metric.name: metric.count for metric in traffic(ledger, [0])[0].metrics}
    assert figures == {"solved": 1, "seconds": 1}


def test_it_goes_with_its_user(ledger: Database) -> None:
    add(ledger, make_rollout("a", user="asker"), solved("m", "a", value=True, user="ann"))
    forget_user.forget_user(ledger, "ann", NOW)
    assert rewards(ledger) == {}
    assert forget_user.row_counts(ledger)["samples"] == 0


def test_another_algorithm_takes_over_what_waits(ledger: Database) -> None:
    add(ledger, make_rollout("a"), make_rollout("b"), rules=PPO)
    add(ledger, solved("m0", "a", value=True), solved("m1", "b", value=False), rules=PPO)
    assert recorder.adopt_rewards(ledger, "grpo") == 2
    assert ppo(ledger) == []
    assert rewards(ledger) == pytest.approx({"m0": 1.0, "m1": -1.0})
    assert recorder.adopt_rewards(ledger, "grpo") == 0


def test_what_both_algorithms_have_stays_where_it_is(ledger: Database) -> None:
    """A session's sample, made again for the other after its own was superseded."""
    of_session = solved("s", "", value=True, session_id="s", second=9)
    own = solved("own", "c0", value=False, second=1)
    add(ledger, make_turn("c0", 0), of_session, own, rules=PPO)
    add(ledger, make_turn("c1", 1), rules=GRPO)
    assert set(rewards(ledger)) == {"own", "s.c0", "s.c1"}
    assert recorder.adopt_rewards(ledger, "ppo") == 1
    assert set(rewards(ledger)) == {"own", "s.c0", "s.c1"}
    assert {sample.sample_id for sample in ppo(ledger)} == {"own", "s.c1"}


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_one_user_weighs_what_one_may(tmp_path: Path, algorithm: str) -> None:
    parts = Parts(
        folder=tmp_path,
        options={
            "policy_gradient": algorithm,
            "policy_gradient_batch_size": 20,
            "reward_metric": "solved",
            "guards": GuardSettings(probation=0),
        },
    )
    rules = sample_rules(parts.settings)
    users = ["flood"] * 16 + ["ann", "bob", "cat", "dan"]
    for number, user in enumerate(users):
        add(parts.database, make_rollout(f"c{number}", user=user), rules=rules)
        value = solved(f"m{number}", f"c{number}", value=number % 2 == 0, user=user)
        add(parts.database, value, rules=rules)
    batch = parts.training_run.next_batch(parts.batches)
    assert batch is not None
    found = batch.samples[algorithm]
    members = [g.samples[0] for g in found] if algorithm == "grpo" else found
    trust = {sample.sample_id: sample.trust for sample in members}
    # A quarter of the batch of 20, over 16.
    assert {trust[f"m{n}"] for n in range(16)} == {5 / 16}
    assert {trust[f"m{n}"] for n in range(16, 20)} == {1.0}


def test_first_values_of_a_user_are_on_probation(tmp_path: Path) -> None:
    guards = GuardSettings(probation=3, probation_weight=0.25, user_days=36_500.0)
    options = {"reward_metric": "solved", "policy_gradient": "grpo", "guards": guards}
    parts = Parts(folder=tmp_path, options=options)
    rules = sample_rules(parts.settings)
    givers = [user for user in ("ann", "bob", "cat", "dan") for _ in range(4)] + ["new"]
    for number, user in enumerate(givers):
        value = solved(f"m{number}", f"c{number}", value=number % 2 == 0, user=user, second=number)
        add(parts.database, make_rollout(f"c{number}", user="asker"), value, rules=rules)
    # The other metrics that were sent of this user are no judgements.
    others = [make_metric(f"x{n}", "c0", "seconds", 1.0 + n, user="new") for n in range(9)]
    add(parts.database, *others, rules=rules)
    groups_taken = grpo(parts.database)
    trusted = Trust(parts.database, guards, clock=parts.clock).add_trust({"grpo": groups_taken})
    trust = {group.sample_id: group.samples[0].trust for group in trusted["grpo"]}
    # 16 of 17 values are of known users.
    assert trust["m16"] == 0.25
    assert {trust[f"m{n}"] for n in range(16)} == {1.0}
