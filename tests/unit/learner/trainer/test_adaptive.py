"""What adapts while the policy learns: rewards, KL control, spikes, rates; and its state."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.policy_samples import SampleMaker

from tuneloop.errors import CorruptData
from tuneloop.learner.guards.gradient_norms import LEAST, WINDOW, GradientNorms
from tuneloop.learner.losses.kto import SCARCE
from tuneloop.learner.samples import ScoredGroup, ScoredSample
from tuneloop.learner.trainer import adaptive
from tuneloop.learner.trainer.adaptive import AdaptiveState
from tuneloop.learner.trainer.base import TrainerState
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.rewards import RewardStatistics, clipped_reward, priced_reward
from tuneloop.learner.trainer.settings import TrainerSettings

DECAY = 0.9
rewards = st.floats(-1e6, 1e6)
batches = st.lists(st.lists(rewards, min_size=1, max_size=8), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(batches)
def test_running_statistics_are_those_of_all_rewards_weighted_by_age(
    given_batches: list[list[float]],
) -> None:
    statistics = RewardStatistics()
    for batch in given_batches:
        statistics = statistics.updated(batch, DECAY)
    weights: list[float] = []
    for batch in given_batches:
        weights = [weight * DECAY ** len(batch) for weight in weights] + [1.0] * len(batch)
    flat = [reward for batch in given_batches for reward in batch]
    mean = math.fsum(w * r for w, r in zip(weights, flat, strict=True)) / math.fsum(weights)
    scatter = math.fsum(w * (r - mean) ** 2 for w, r in zip(weights, flat, strict=True))
    size = max(1.0, *map(abs, flat))
    assert statistics.weight == pytest.approx(math.fsum(weights))
    assert statistics.mean == pytest.approx(mean, abs=1e-9 * size)
    assert statistics.deviation == pytest.approx(
        math.sqrt(scatter / math.fsum(weights)), abs=1e-6 * size
    )


@settings(max_examples=100, deadline=None)
@given(batches)
def test_whatever_came_before_a_standardised_reward_is_bounded(
    given_batches: list[list[float]],
) -> None:
    statistics = RewardStatistics()
    largest = max(map(len, given_batches))
    heaviest = largest / (1 - DECAY**largest)
    for batch in given_batches:
        statistics = statistics.updated(batch, DECAY)
        bound = math.sqrt(statistics.weight - 1) if statistics.weight > 1 else 0.0
        assert statistics.weight <= heaviest + 1e-9
        for reward in batch:
            assert abs(statistics.standardised(reward)) <= bound + 1e-3


@settings(max_examples=50, deadline=None)
@given(st.floats(-2, 2), st.floats(0.1, 100), st.floats(-1000, 1000))
def test_drifting_rewards_keep_their_scale(slope: float, spread: float, start: float) -> None:
    """However they rise or fall, and whatever their unit, what PPO sees has mean 0 and size 1."""
    drifting = [
        [start + spread * (slope * 0.01 * (4 * step + i) + (-1) ** i) for i in range(4)]
        for step in range(60)
    ]
    statistics, seen = RewardStatistics(), []
    for batch in drifting:
        statistics = statistics.updated(batch, DECAY)
        seen.append([statistics.standardised(reward) for reward in batch])
    late = [reward for batch in seen[20:] for reward in batch]
    mean = sum(late) / len(late)
    assert abs(mean) < 0.4
    assert 0.7 < math.sqrt(sum((r - mean) ** 2 for r in late) / len(late)) < 1.3


def test_rewards_are_clipped_priced_and_may_be_unknown() -> None:
    sample = replace(SampleMaker().scored(1)[0], reward=3.0, stopped=False)
    options = TrainerSettings(reward_clip=2.0, missing_stop_penalty=0.5)
    assert clipped_reward(sample, options) == 1.5
    assert clipped_reward(replace(sample, stopped=True, reward=-9.0), options) == -2.0
    assert priced_reward(sample, options) == 2.5
    assert priced_reward(replace(sample, stopped=True, reward=-9.0), options) == -9.0
    assert math.isnan(priced_reward(replace(sample, reward=math.nan), options))
    known = RewardStatistics(weight=10.0, mean=2.0, variance=4.0)
    assert clipped_reward(sample, options, known) == pytest.approx(0.5 - 0.5, abs=1e-4)


def test_the_kl_coefficient_is_adapted_as_ziegler_does() -> None:
    def adapted(kl: float) -> float:
        return adaptive.adapted_factor(2.0, kl=kl, target=6.0, horizon=1000, completions=100)

    assert adapted(6.0) == 2.0
    assert adapted(6.6) == pytest.approx(2.0 * (1 + 0.1 * 0.1))
    assert adapted(600.0) == pytest.approx(2.0 * (1 + 0.2 * 0.1))
    assert adapted(-600.0) == pytest.approx(2.0 * (1 - 0.2 * 0.1))


def test_the_rate_falls_and_the_pull_grows_as_the_kl_budget_is_spent() -> None:
    spent = (0.0, 0.5, 1.0, 2.0, 10.0)
    rates = [adaptive.rate_factor(part) for part in spent]
    assert rates == pytest.approx([1.0, 0.8, 0.5, 0.2, 1 / 101])
    pulls = [adaptive.pull(part) for part in spent]
    assert pulls == pytest.approx([0.0, 0.0025, 0.01, 0.025, 0.025])


def test_one_thumb_of_a_quiet_service_says_little_about_the_kl() -> None:
    options, state = TrainerSettings(kl_budget=0.5), AdaptiveState()
    assert state.spent(options) == 0.0
    for kl in (0.1, 0.1):
        state = state.after({"kl": kl, "evidence": 1.0}, {}, options)
    assert state.spent(options) == pytest.approx(0.2)
    one = state.after({"kl": 3.0, "evidence": 1 / 16}, {}, options)
    kept = 0.25 ** (1 / 16)
    expected = (kept * 1.25 * 0.1 + 3.0 / 16) / (kept * 1.25 + 1 / 16) / 0.5
    assert one.spent(options) == pytest.approx(expected)
    assert not one.controls(options).kl_above
    batch = state.after({"kl": 3.0, "evidence": 1.0}, {}, options)
    assert batch.spent(options) == pytest.approx((0.3125 * 0.1 + 3.0) / 1.3125 / 0.5)
    assert batch.controls(options).kl_above
    # An estimate of a KL may be negative.
    below = AdaptiveState().after({"kl": -0.1}, {}, options)
    assert below.spent(options) == 0.0
    assert AdaptiveState().after({"kl": 9.0}, {}, TrainerSettings()).spent(options) == 0.0


def test_a_spike_is_told_from_what_is_usual_and_a_change_for_good_is_accepted() -> None:
    norms = GradientNorms()
    assert not any(norms.is_spike("kto", 1.0 + 0.1 * i, 10.0) for i in range(LEAST))
    assert norms.is_spike("kto", 100.0, 10.0)
    assert not norms.is_spike("kto", 2.0, 10.0)
    assert not norms.is_spike("dpo", 100.0, 10.0)  # another kind of step
    refused = [norms.is_spike("kto", 100.0, 10.0) for _ in range(WINDOW)]
    assert refused[0]
    assert not refused[WINDOW // 2]
    again = GradientNorms.of_state(json.loads(json.dumps(norms.state())))
    assert again.state() == norms.state()


@pytest.mark.parametrize("state", [[], {"kto": 1.0}, {"kto": ["1"]}, {"kto": [math.nan]}])
def test_norms_that_are_none_are_corrupt_data(state: Any) -> None:
    with pytest.raises(CorruptData, match="gradient_norms"):
        GradientNorms.of_state(state)


def test_judgements_one_by_one_keep_the_budget_of_their_batch() -> None:
    """A short answer has a large KL by token; alone it weighs by its tokens, as in a batch."""
    options = TrainerSettings(kl_budget=0.8)
    together = {"kl": (2 * 4.0 + 30 * 0.1) / 32, "tokens": 32.0, "evidence": 1.0}
    alone = [
        {"kl": 4.0, "tokens": 2.0, "evidence": 0.5},
        {"kl": 0.1, "tokens": 30.0, "evidence": 0.5},
    ]
    state = AdaptiveState()
    for metrics in alone:
        state = state.after(metrics, {}, options)
    in_batch = AdaptiveState().after(together, {}, options).spent(options)
    # The one that came first weighs half by now.
    assert state.spent(options) == pytest.approx((0.5 * 2 * 4.0 + 30 * 0.1) / (0.5 * 2 + 30) / 0.8)
    assert state.spent(options) < in_batch


def steered(
    samples: Mapping[str, Any], options: TrainerSettings, **metrics: float
) -> AdaptiveState:
    return AdaptiveState().with_rewards(samples, options).after(metrics, samples, options)


def test_steering_survives_a_checkpoint_bit_for_bit_and_refuses_another_thing() -> None:
    options = TrainerSettings(kl_budget=0.1, kl_target=1.0, critic_warmup_steps=1)
    maker = SampleMaker()
    samples = {"ppo": maker.scored(3), "grpo": maker.groups(2)}
    before = steered(samples, options, kl=0.2, completion_kl=3.3)
    assert before.spent(options) == 2.0
    assert before.kl_factor > 1
    assert AdaptiveState.of_state(json.loads(json.dumps(before.state()))) == before
    assert AdaptiveState().controls(options).critic_only
    assert not before.controls(options).critic_only
    assert AdaptiveState.of_state({}) == AdaptiveState()
    # What an earlier version kept beside says nothing here.
    assert AdaptiveState.of_state({"kl_level": 3, "kl_above": True, "kl_evidence": 0.1}) == (
        AdaptiveState()
    )
    for wrong in ({"kl_sum": "1"}, {"kl_sum": math.nan}, {"other": 1}, {"ppo_rewards": 3}, 7):
        with pytest.raises(CorruptData, match="steering"):
            AdaptiveState.of_state(wrong)


def test_class_balance_follows_the_stream_not_the_batch() -> None:
    maker, options = SampleMaker(), TrainerSettings()
    mixed = [
        replace(thumb, desirable=n % 4 > 0, weight=1.0) for n, thumb in enumerate(maker.thumbs(8))
    ]
    adaptive = AdaptiveState().with_rewards({"kto": mixed}, options)
    assert adaptive.controls(options).desirable_share == 0.75
    # Two of eight, and what is left of the one of each kind that is supposed.
    left = 0.97**8
    rarer = (2 + left) / (8 + 2 * left)
    assert 1 - adaptive.controls(options).expected_share == pytest.approx(rarer)
    one_more = [replace(thumb, desirable=False, weight=1.0) for thumb in maker.thumbs(1)]
    later = adaptive.with_rewards({"kto": one_more}, options).controls(options).desirable_share
    decayed = 0.97 * 8
    assert later == pytest.approx(0.75 * decayed / (decayed + 1))
    assert AdaptiveState().controls(options).desirable_share == 0.5
    assert AdaptiveState.of_state(json.loads(json.dumps(adaptive.state()))) == adaptive


def test_a_kind_of_thumbs_that_never_comes_is_soon_known_to_be_absent() -> None:
    maker, options, adaptive = SampleMaker(), TrainerSettings(), AdaptiveState()
    downs = [replace(thumb, desirable=False, weight=1.0) for thumb in maker.thumbs(16)]
    shares = []
    for _ in range(6):
        adaptive = adaptive.with_rewards({"kto": downs}, options)
        shares.append(adaptive.controls(options).expected_share)
    assert shares[0] > SCARCE
    assert shares[-1] < 0.002
    up = replace(downs[0], desirable=True)
    told = adaptive.with_rewards({"kto": [up]}, options).controls(options)
    assert told.expected_share > 0.8 * SCARCE


def make_trainer(folder: Path, **options: Any) -> PolicyTrainer:
    given_options = {"learning_rate": 1e-3, "threads": 1, **options}
    return PolicyTrainer(folder, TrainerSettings(**given_options))


def copied(trainer: PolicyTrainer) -> TrainerState:
    state = trainer.state()
    return replace(state, scheduler=json.loads(json.dumps(dict(state.scheduler))))


def test_a_trainer_with_everything_that_adapts_resumes_bit_for_bit(tiny_policy: Path) -> None:
    options: dict[str, Any] = {
        "kl_budget": 1e-4,
        "kl_target": 0.01,
        "normalize_rewards": True,
        "critic_warmup_steps": 2,
        "lr_scheduler_type": "cosine",
        "max_steps": 20,
        "warmup_steps": 2,
    }

    def batch(step: int) -> dict[str, Any]:
        maker = SampleMaker(step)
        lone = [replace(g, samples=g.samples[:1]) for g in maker.groups(2)]
        return {"ppo": maker.scored(4), "grpo": lone, "sft": maker.demonstrations(2)}

    straight, first, second = (make_trainer(tiny_policy, **options) for _ in range(3))
    for step in range(4):
        straight.step(batch(step))
        first.step(batch(step))
    second.load_state(copied(first))
    for step in range(4, 8):
        expected = straight.step(batch(step))
        assert second.step(batch(step)) == expected
    assert expected.metrics["kl_coef"] != 0.05
    for name, tensor in straight.state().model.items():
        assert torch.equal(tensor, second.state().model[name]), name
    assert straight.state().scheduler == second.state().scheduler


def test_a_gradient_spike_skips_the_step_and_is_counted_as_such(tiny_policy: Path) -> None:
    trainer = make_trainer(tiny_policy, max_grad_norm=1e-4, learning_rate=1e-6)
    thumbs = SampleMaker().thumbs(4)
    for _ in range(LEAST):
        assert not trainer.step({"kto": thumbs}).skipped
    before = trainer.state()
    parameters = trainer.model.parameters().values()
    hooks = [p.register_hook(lambda gradient: 100 * gradient) for p in parameters]
    result = trainer.step({"kto": thumbs})
    for hook in hooks:
        hook.remove()
    assert (result.skipped, result.reason) == (True, "gradient_spike")
    assert result.metrics["gradient_norm"] > 1e-4
    for name, tensor in trainer.state().model.items():
        assert torch.equal(tensor, before.model[name])
    assert trainer.optimizer_steps == LEAST
    assert not trainer.step({"kto": thumbs}).skipped
    deaf = make_trainer(tiny_policy, max_grad_norm=1e-4, learning_rate=1e-6, spike_factor=None)
    deaf.load_state(before)
    for parameter in deaf.model.parameters().values():
        parameter.register_hook(lambda gradient: 100 * gradient)
    assert not deaf.step({"kto": thumbs}).skipped


def test_the_rate_warms_up_again_after_a_resume_if_told_to(tiny_policy: Path) -> None:
    trainer = make_trainer(tiny_policy, resume_warmup_steps=4)
    samples = {"sft": SampleMaker().demonstrations(2)}
    rates = [trainer.step(samples).metrics["learning_rate"] for _ in range(2)]
    trainer.load_state(copied(trainer))
    rates += [trainer.step(samples).metrics["learning_rate"] for _ in range(5)]
    assert rates == pytest.approx([1e-3, 1e-3, 0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])


def test_a_resume_during_the_warm_up_takes_the_slower_of_the_two(tiny_policy: Path) -> None:
    trainer = make_trainer(tiny_policy, warmup_steps=5, resume_warmup_steps=2)
    samples = {"sft": SampleMaker().demonstrations(2)}
    rates = [trainer.step(samples).metrics["learning_rate"] for _ in range(3)]
    trainer.load_state(copied(trainer))
    rates += [trainer.step(samples).metrics["learning_rate"] for _ in range(3)]
    assert rates == pytest.approx([0.2e-3, 0.4e-3, 0.6e-3, 0.5e-3, 1e-3, 1e-3])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [0.5, 1.0, 1.0, 0.5 + 0.25 * 2**0.5, 0.5, 0.5 - 0.25 * 2**0.5, 0.0]),
    ],
)
def test_the_rate_falls_to_nothing(tiny_policy: Path, kind: str, expected: list[float]) -> None:
    trainer = make_trainer(tiny_policy, lr_scheduler_type=kind, max_steps=6, warmup_steps=2)
    samples = {"sft": SampleMaker().demonstrations(1)}
    rates = [trainer.step(samples).metrics["learning_rate"] * 1e3 for _ in range(7)]
    assert rates == pytest.approx(expected, abs=1e-9)


def test_a_kl_budget_holds_a_policy_near_it(tiny_policy: Path) -> None:
    """A pull that began and ended at the budget undid half of what was learned, by its momentum."""
    thumbs = {"kto": SampleMaker().thumbs(6)}
    options: dict[str, Any] = {"learning_rate": 3e-3, "beta_kto": 0.01}
    free = make_trainer(tiny_policy, **options)
    held = make_trainer(tiny_policy, **options, kl_budget=0.2)
    drift = [free.step(thumbs).metrics["kl"] for _ in range(40)]
    kls = [held.step(thumbs).metrics["kl"] for _ in range(40)]
    assert drift[-1] > 0.6
    assert max(kls) < 0.32
    assert min(kls[kls.index(max(kls)) :]) > 0.17
    far_above = make_trainer(tiny_policy, **options, kl_budget=0.2)
    far_above.load_state(copied(free))
    came_back = [far_above.step(thumbs).metrics for _ in range(40)]
    assert came_back[1]["learning_rate"] < 0.1 * 3e-3
    assert came_back[-1]["kl"] < 0.3


def test_sft_measures_its_kl_only_for_a_budget(tiny_policy: Path) -> None:
    samples = {"sft": SampleMaker().demonstrations(2)}
    assert "kl" not in make_trainer(tiny_policy).step(samples).metrics
    assert make_trainer(tiny_policy, kl_budget=1.0).step(samples).metrics["kl"] == 0.0


def test_normalised_rewards_do_not_depend_on_their_unit(tiny_policy: Path) -> None:
    def losses(scale: float, shift: float) -> list[Mapping[str, float]]:
        trainer = make_trainer(tiny_policy, normalize_rewards=True)
        steps = []
        for seed in range(3):
            scored = SampleMaker(seed).scored(4)
            moved = [replace(s, reward=scale * s.reward + shift) for s in scored]
            metrics = dict(trainer.step({"ppo": moved}).metrics)
            assert metrics.pop("reward") == pytest.approx(sum(s.reward for s in moved) / 4)
            steps.append(metrics)
        return steps

    for plain, other in zip(losses(1.0, 0.0), losses(50.0, -700.0), strict=True):
        assert other == pytest.approx(dict(plain), rel=1e-2, abs=1e-3)


def test_critic_warm_up_leaves_the_policy_alone_for_its_steps(tiny_policy: Path) -> None:
    trainer = make_trainer(tiny_policy, critic_warmup_steps=2)
    moved = []
    for seed in range(3):
        before = trainer.state().model
        trainer.step({"ppo": SampleMaker(seed).scored(4)})
        after = trainer.state().model
        moved.append({n.split(".")[0] for n in after if not torch.equal(before[n], after[n])})
    assert moved[0] == moved[1] == {"value_head"}
    assert len(moved[2]) > 1


def test_a_step_whose_groups_have_no_spread_is_skipped_and_says_so(tiny_policy: Path) -> None:
    groups = SampleMaker().groups(2)
    same = [
        replace(g, samples=tuple(replace(s, reward=0.5, stopped=True) for s in g.samples))
        for g in groups
    ]
    trainer = make_trainer(tiny_policy)
    result = trainer.step({"grpo": same})
    assert (result.skipped, result.reason) == (True, "no_spread")
    assert result.metrics["skipped_groups"] == 1.0
    mixed = trainer.step({"grpo": same, "kto": SampleMaker().thumbs(4)})
    assert not mixed.skipped
    assert "grpo_loss" not in mixed.metrics
    assert mixed.metrics["skipped_groups"] == 1.0


def test_a_group_may_hold_a_reward_that_could_not_be_given_but_ppo_may_not(
    tiny_policy: Path,
) -> None:
    trainer = make_trainer(tiny_policy)
    scored = SampleMaker().scored(2)
    unknown: ScoredSample = replace(scored[0], reward=math.nan)
    trainer.check("grpo", ScoredGroup(sample_id="g", samples=(unknown, scored[1])))
    for reward in (math.inf, -math.inf):
        endless = replace(unknown, reward=reward)
        with pytest.raises(Exception, match="not finite"):
            trainer.check("grpo", ScoredGroup(sample_id="g", samples=(endless,)))
    with pytest.raises(Exception, match="not finite"):
        trainer.check("ppo", unknown)
