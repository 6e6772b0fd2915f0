"""One step of the policy: invariances, what is skipped, what is refused."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.policy_samples import SampleMaker
from torch import Tensor

from tuneloop.errors import InvalidRequest, SettingsError
from tuneloop.learner.objectives.kto import plan_kto
from tuneloop.learner.samples import PolicySample, ScoredGroup
from tuneloop.learner.samples.learned_tokens import at_temperature_one
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import RewardTrainerSettings, TrainerSettings
from tuneloop.policies import WeightsKind

Samples = Mapping[str, Sequence[PolicySample]]


def make_trainer(folder: Path, **options: Any) -> PolicyTrainer:
    return PolicyTrainer(
        folder, TrainerSettings(**{"learning_rate": 1e-3, "threads": 1, **options})
    )


def mixed(seed: int = 0) -> Samples:
    maker = SampleMaker(seed)
    return {
        "kto": maker.thumbs(8),
        "dpo": maker.pairs(4),
        "ppo": maker.scored(6),
        "sft": maker.demonstrations(4),
        "sdft": maker.comments(4),
        "grpo": maker.groups(3),
    }


def tensors(trainer: PolicyTrainer) -> dict[str, Tensor]:
    return dict(trainer.state().model)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("objective", ["sft", "kto", "dpo", "sdft", "ppo", "grpo"])
def test_how_the_batch_is_cut_does_not_change_the_step(tiny_policy: Path, objective: str) -> None:
    # Moments are compared: Adam's division makes whole steps of the rounding of tiny gradients.
    samples = {objective: mixed()[objective]}
    whole = make_trainer(tiny_policy, token_budget=10_000, kto_z="mismatched")
    single = make_trainer(tiny_policy, token_budget=1, kto_z="mismatched")
    for _ in range(2):
        metrics = whole.step(samples).metrics
        assert single.step(samples).metrics == pytest.approx(dict(metrics), rel=1e-4, abs=1e-6)
    expected, moments = whole.state().optimizer, single.state().optimizer
    assert expected.keys() == moments.keys()
    for name, moment in expected.items():
        assert torch.allclose(moments[name], moment, rtol=1e-3, atol=1e-6), name


def test_objectives_do_not_dilute_each_other(tiny_policy: Path) -> None:
    """The gradient of a mix is the sum of the gradients of its parts."""
    parts = mixed()
    gradients: list[dict[str, Tensor]] = []
    for samples in (parts, *({name: batch} for name, batch in parts.items())):
        trainer = make_trainer(tiny_policy, max_grad_norm=1e9)
        trainer.step(samples)
        state = trainer.state().optimizer
        gradients.append(
            {n: t for n, t in state.items() if n.endswith("lora_B.default.weight.exp_avg")}
        )
    mix, *alone = gradients
    assert mix
    for name, gradient in mix.items():
        total = torch.stack([g[name] for g in alone]).sum(0)
        assert torch.allclose(gradient, total, rtol=1e-4, atol=1e-7)


def test_objective_weights_scale_a_loss_and_zero_turns_it_off(tiny_policy: Path) -> None:
    samples = mixed()
    trainer = make_trainer(tiny_policy, objective_weights={"kto": 2.0, "dpo": 0.0})
    metrics = trainer.step(samples).metrics
    others = sum(metrics[f"{name}_loss"] for name in ("ppo", "sft", "sdft", "grpo"))
    assert metrics["loss"] == pytest.approx(2 * metrics["kto_loss"] + others)
    off = make_trainer(tiny_policy, objective_weights={"dpo": 0.0})
    before = tensors(off)
    assert off.step({"dpo": samples["dpo"]}).metrics["gradient_norm"] == 0.0
    assert same(before, tensors(off))


def test_at_version_0_policy_is_reference(tiny_policy: Path) -> None:
    metrics = make_trainer(tiny_policy).step(mixed()).metrics
    assert metrics["kl"] == 0.0
    assert metrics["kto_loss"] == pytest.approx(0.5)
    assert metrics["dpo_loss"] == pytest.approx(math.log(2))
    assert metrics["desirable_margin"] == metrics["undesirable_margin"] == 0.0


def test_old_policy_is_policy_so_the_first_epoch_has_ratio_1_and_clips_nothing(
    tiny_policy: Path,
) -> None:
    maker = SampleMaker()
    unsampled = [
        replace(s, sequence=replace(s.sequence, generation_logprobs=())) for s in maker.scored(6)
    ]
    metrics = make_trainer(tiny_policy).step({"ppo": unsampled}).metrics
    assert metrics["importance_ratio"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["importance_weight"] == 1.0
    assert metrics["clip_fraction"] == 0.0
    assert metrics["gated_fraction"] == 0.0


def test_ppo_reuses_a_batch_as_often_as_told_and_then_clips(tiny_policy: Path) -> None:
    trainer = make_trainer(tiny_policy, ppo_epochs=3, learning_rate=0.05)
    samples = mixed()
    metrics = trainer.step(samples).metrics
    assert trainer.optimizer_steps == 3
    assert metrics["clip_fraction"] > 0
    assert metrics["importance_ratio"] != pytest.approx(1.0, abs=1e-3)
    assert metrics["kl"] == 0.0  # as it was before the step
    trainer.step({"kto": samples["kto"]})
    assert trainer.optimizer_steps == 4


def test_rewards_are_clipped_and_running_into_the_limit_costs(tiny_policy: Path) -> None:
    sample = SampleMaker().scored(1)[0]
    scored = [
        replace(sample, reward=99.0, stopped=True),
        replace(sample, reward=3.0, stopped=False),
    ]
    trainer = make_trainer(tiny_policy, reward_clip=5.0, missing_stop_penalty=0.5)
    metrics = trainer.step({"ppo": scored}).metrics
    assert metrics["returns"] == pytest.approx((5.0 + 2.5) / 2)
    assert metrics["reward"] == pytest.approx((99.0 + 3.0) / 2)
    assert metrics["stopped_fraction"] == 0.5


def test_what_another_policy_sampled_is_gated_out(tiny_policy: Path) -> None:
    sample = SampleMaker().scored(1)[0]
    tokens = len(sample.sequence.completion_token_ids)
    foreign = replace(sample.sequence, generation_logprobs=(-0.01,) * tokens)
    trainer = make_trainer(tiny_policy)
    before = tensors(trainer)
    result = trainer.step({"ppo": [replace(sample, sequence=foreign)]})
    assert result.metrics["gated_fraction"] == 1.0
    assert result.metrics["ppo_loss"] == 0.0
    assert same(before, tensors(trainer))


def test_the_value_head_learns_the_return_of_its_rollouts(tiny_policy: Path) -> None:
    trainer = make_trainer(tiny_policy, learning_rate=1e-6)
    scored = [replace(s, reward=1.0, stopped=True) for s in SampleMaker().scored(6)]
    losses = [trainer.step({"ppo": scored}).metrics["value_loss"] for _ in range(40)]
    assert losses[0] == pytest.approx(0.5, rel=0.05)
    assert losses[-1] < 0.05


def reweighted(sample: Any, factor: float) -> Any:
    if isinstance(sample, ScoredGroup):
        return replace(sample, samples=tuple(reweighted(s, factor) for s in sample.samples))
    return replace(sample, weight=factor)


def test_a_sample_weight_of_0_takes_a_sample_out(tiny_policy: Path) -> None:
    for objective, batch in mixed().items():
        trainer = make_trainer(tiny_policy)
        before = tensors(trainer)
        trainer.step({objective: [reweighted(sample, 0.0) for sample in batch]})
        lora = {name for name in before if "lora" in name}
        after = tensors(trainer)
        assert all(torch.equal(before[name], after[name]) for name in lora), objective


def gradient_of(
    folder: Path, samples: Samples, **options: Any
) -> tuple[dict[str, Tensor], Mapping[str, float]]:
    """A tenth of the gradient of a first step, which is its first moment; and the metrics."""
    trainer = make_trainer(folder, max_grad_norm=1e9, **options)
    metrics = trainer.step(samples).metrics
    state = trainer.state().optimizer
    moments = {n: t for n, t in state.items() if n.endswith("lora_B.default.weight.exp_avg")}
    assert max(float(t.abs().max()) for t in moments.values()) > 0
    return moments, metrics


@pytest.mark.parametrize("objective", ["sft", "kto", "dpo", "sdft", "ppo", "grpo"])
def test_only_weights_between_samples_count_and_the_objectives_own(
    tiny_policy: Path, objective: str
) -> None:
    """A batch of rankings, whose pairs weigh little, moves the policy as far as any other."""
    batch = mixed()[objective]
    once, metrics = gradient_of(tiny_policy, {objective: batch})
    light = {objective: [reweighted(sample, 1 / 6) for sample in batch]}
    same_again, light_metrics = gradient_of(tiny_policy, light)
    twice, _ = gradient_of(tiny_policy, light, objective_weights={objective: 2.0})
    assert light_metrics == pytest.approx(dict(metrics), rel=1e-5)
    for name, gradient in once.items():
        assert torch.allclose(same_again[name], gradient, rtol=1e-4, atol=1e-8), name
        assert torch.allclose(twice[name], 2 * gradient, rtol=1e-4, atol=1e-8), name


@pytest.mark.parametrize("objective", ["sft", "kto", "dpo", "sdft", "grpo"])
def test_a_weight_of_2_is_the_sample_twice(tiny_policy: Path, objective: str) -> None:
    first, *rest = mixed()[objective]
    heavy, _ = gradient_of(tiny_policy, {objective: [reweighted(first, 2.0), *rest]})
    repeated, _ = gradient_of(tiny_policy, {objective: [first, first, *rest]})
    for name, gradient in repeated.items():
        assert torch.allclose(heavy[name], gradient, rtol=1e-4, atol=1e-7), name


def test_dpo_divides_by_the_weights_of_the_pairs(tiny_policy: Path) -> None:
    """By hand: where policy is reference each pair's loss is ln 2, so their mean is, however heavy.

    The six pairs of a ranking of four weigh 1/6 each; beside them is one pair that weighs 1.
    """
    pairs = SampleMaker().pairs(7)
    samples = [*(replace(pair, weight=1 / 6) for pair in pairs[:6]), pairs[6]]
    for batch in (samples, samples[:6]):
        metrics = make_trainer(tiny_policy, token_budget=64).step({"dpo": batch}).metrics
        assert metrics["dpo_loss"] == pytest.approx(math.log(2))


@pytest.mark.parametrize("kind", WeightsKind)
def test_equal_settings_give_equal_steps(tiny_policy: Path, kind: WeightsKind) -> None:
    a, b = (make_trainer(tiny_policy, kind=kind, seed=7) for _ in range(2))
    for seed in range(2):
        assert a.step(mixed(seed)) == b.step(mixed(seed))
    assert same(tensors(a), tensors(b))


def test_nothing_to_learn_from_is_a_skipped_step(tiny_policy: Path) -> None:
    trainer = make_trainer(tiny_policy)
    for samples in ({}, {"kto": [], "ppo": []}):
        result = trainer.step(samples)
        assert (result.skipped, result.reason) == (True, "no_samples")
    assert trainer.optimizer_steps == 0


def test_a_bad_sample_is_refused_before_anything_changes(tiny_policy: Path) -> None:
    trainer = make_trainer(tiny_policy)
    before = tensors(trainer)
    samples = dict(mixed())
    bad = replace(SampleMaker().scored(1)[0], sample_id="bad", reward=math.nan)
    samples["ppo"] = [*samples["ppo"], bad]
    with pytest.raises(InvalidRequest) as caught:
        trainer.step(samples)
    assert caught.value.param == "bad"
    with pytest.raises(InvalidRequest, match="kto learns from ThumbSample, not PairSample"):
        trainer.step({"kto": SampleMaker().pairs(1)})
    with pytest.raises(InvalidRequest, match="'other' is none of sft, kto, dpo, sdft, ppo, grpo"):
        trainer.step({"other": SampleMaker().scored(1)})
    with pytest.raises(InvalidRequest, match="more than the 512 that fit"):
        trainer.check("kto", replace(mixed()["kto"][0], sequence=SampleMaker().sequence(600)))  # type: ignore[arg-type]
    assert same(before, tensors(trainer))
    assert trainer.optimizer_steps == 0


def poison(trainer: PolicyTrainer, value: float) -> None:
    with torch.no_grad():
        parameter = next(iter(trainer._model.parameters().values()))
        parameter[0, 0] = value


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_skips_the_step(tiny_policy: Path, value: float) -> None:
    trainer = make_trainer(tiny_policy)
    trainer.step(mixed())
    poison(trainer, value)
    before = trainer.state()
    result = trainer.step(mixed(1))
    assert (result.skipped, result.reason) == (True, "non_finite_loss")
    after = trainer.state()
    assert same(before.optimizer, after.optimizer)
    assert before.scheduler == after.scheduler


def test_a_gradient_that_is_not_finite_skips_the_step(
    tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tiny_policy)
    before = tensors(trainer)
    parameter = next(iter(trainer._model.parameters().values()))
    hook = parameter.register_hook(lambda gradient: gradient * math.inf)
    result = trainer.step(mixed())
    assert (result.skipped, result.reason) == (True, "non_finite_gradient")
    assert same(before, tensors(trainer))
    assert trainer.optimizer_steps == 0
    hook.remove()
    assert not trainer.step(mixed()).skipped


def test_the_rate_warms_up_and_the_gradient_is_clipped(tiny_policy: Path) -> None:
    trainer = make_trainer(tiny_policy, warmup_steps=4, max_grad_norm=1e-3)
    rates = [trainer.step(mixed()).metrics["learning_rate"] for _ in range(5)]
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])
    trainer = make_trainer(tiny_policy, max_grad_norm=1e-3)
    assert trainer.step(mixed()).metrics["gradient_norm"] > 1e-3
    state = trainer.state().optimizer
    moments = [t for n, t in state.items() if n.endswith("exp_avg") and "value" not in n]
    norm = torch.stack([(moment / 0.1).square().sum() for moment in moments]).sum().sqrt()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_kto_reference_point_is_the_log_ratio_of_mismatched_completions(tiny_policy: Path) -> None:
    settings = TrainerSettings(kto_z="mismatched", threads=1, learning_rate=0.02)
    trainer = PolicyTrainer(tiny_policy, settings)
    thumbs = [
        replace(s, desirable=True, sequence=at_temperature_one(s.sequence))
        for s in SampleMaker().thumbs(6)
    ]
    assert trainer.step({"kto": thumbs}).metrics["kto_z"] == 0.0
    for _ in range(5):
        metrics = trainer.step({"kto": thumbs}).metrics
    assert metrics["kto_z"] > 0
    swapped = [
        replace(
            s,
            sequence=replace(s.sequence, prompt_token_ids=after.sequence.prompt_token_ids),
        )
        for s, after in zip(thumbs, [*thumbs[1:], thumbs[0]], strict=True)
    ]
    plan = plan_kto(trainer._model, swapped, replace(settings, kto_z="zero"))
    margins = [micro()[1]["desirable_margin"] for micro in plan.micro_losses]
    mean = sum(float(m.total) for m in margins) / sum(float(m.count) for m in margins)
    again = trainer.step({"kto": thumbs}).metrics["kto_z"]
    assert again == pytest.approx(mean / settings.beta_kto, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beta_kto", 0),
        ("clip", 1.5),
        ("dual_clip", 0.5),
        ("learning_rate", -1.0),
        ("kto_z", "other"),
        ("ppo_epochs", 0),
        ("objective_weights", {"other": 1.0}),
        ("dpo_loss_type", "hinge"),
        ("flip_rate", 0.5),
        ("epsilon", 0.0),
        ("scale_rewards", "batch"),
        ("advantage_estimator", "reinforce"),
        ("reward_decay", 1.0),
        ("spike_factor", 1.0),
        ("kl_budget", 0.0),
        ("kl_target", -1.0),
        ("critic_warmup_steps", -1),
        ("lr_scheduler_type", "step"),
        ("max_steps", 0),
        ("resume_warmup_steps", -1),
        ("objective_weights", {"kto": -1.0}),
        ("betas", (0.9, 1.0)),
        ("max_length", 1),
        ("gamma", 1.1),
    ],
)
def test_a_setting_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=name) as caught:
        TrainerSettings(**{name: value})
    assert caught.value.param == name


def test_settings_of_the_reward_trainer_are_checked_too() -> None:
    with pytest.raises(SettingsError, match="head_learning_rate"):
        RewardTrainerSettings(head_learning_rate=0)


def test_robust_dpo_takes_each_pairs_flip_rate_or_the_one_of_the_settings(
    tiny_policy: Path,
) -> None:
    pairs = SampleMaker().pairs(3)
    doubtful = [replace(pair, flip_rate=0.2) for pair in pairs]

    def loss(samples: Sequence[PolicySample], **options: Any) -> float:
        trainer = make_trainer(tiny_policy, learning_rate=1e-2, **options)
        for _ in range(3):
            metrics = trainer.step({"dpo": samples}).metrics
        return metrics["dpo_loss"]

    assert loss(doubtful) == loss(pairs, flip_rate=0.2)
    assert loss(doubtful, flip_rate=0.0) == loss(pairs)
    assert loss(doubtful, dpo_loss_type="sigmoid") == pytest.approx(loss(pairs))
    assert loss(doubtful) != pytest.approx(loss(pairs), rel=1e-3)
