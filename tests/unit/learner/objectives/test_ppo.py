"""PPO's whole plan against a reference written out in loops over plain numbers, in float64."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from support.given_model import GivenModel, total_loss

from tuneloop.learner.objectives.ppo import plan_ppo
from tuneloop.learner.samples import ScoredSample, TokenSequence
from tuneloop.learner.trainer.adaptive import StepControls
from tuneloop.learner.trainer.settings import TrainerSettings

LENGTHS = (5, 2, 7, 3, 1, 4)
WIDTH = max(LENGTHS)


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Arrays are (6, 7), meaningless past the length of a row."""

    generation: np.ndarray
    old: np.ndarray
    policy: np.ndarray
    reference: np.ndarray
    old_values: np.ndarray
    values: np.ndarray
    rewards: np.ndarray  # (6,)
    stopped: np.ndarray  # (6,)
    weights: np.ndarray  # (6,)


def make_problem(seed: int) -> Problem:
    random = np.random.default_rng(seed)

    def around(center: np.ndarray, width: float) -> np.ndarray:
        return np.minimum(center + random.uniform(-width, width, center.shape), -1e-3)

    old = -4.0 * random.random((6, WIDTH))
    old_values = random.normal(size=(6, WIDTH))
    generation = around(old, 0.8)
    generation[3] = old[3] - 1.5  # geometric mean ratio e^1.5: beyond the gate
    return Problem(
        generation=generation,
        old=old,
        policy=around(old, 0.6),
        reference=around(old, 1.0),
        old_values=old_values,
        values=old_values + random.normal(scale=0.3, size=(6, WIDTH)),
        rewards=np.array([1.0, -0.5, 30.0, 0.2, -2.0, 0.7]),
        stopped=np.array([True, True, False, True, False, True]),
        weights=np.array([1.0, 0.5, 1.0, 1.0, 2.0, 1.0]),
    )


def reference_loss(p: Problem, s: TrainerSettings) -> tuple[float, np.ndarray, np.ndarray]:
    """Loss, and its gradients by log-probs and by values."""
    cells = [(i, t) for i in range(6) for t in range(LENGTHS[i])]
    rewards = np.zeros((6, WIDTH))
    for i, t in cells:
        rewards[i, t] = -s.kl_coef * (p.old[i, t] - p.reference[i, t])
        if t == LENGTHS[i] - 1:
            score = min(max(p.rewards[i], -s.reward_clip), s.reward_clip)
            rewards[i, t] += score if p.stopped[i] else score - s.missing_stop_penalty
    if s.whiten_rewards:
        all_rewards = [rewards[cell] for cell in cells]
        mean, variance = np.mean(all_rewards), np.var(all_rewards)
        for cell in cells:
            rewards[cell] = (rewards[cell] - mean) / math.sqrt(variance + 1e-8) + mean
    advantages, returns = np.zeros((6, WIDTH)), np.zeros((6, WIDTH))
    for i in range(6):
        for t in range(LENGTHS[i]):
            # The sum of (γλ)^k·δ_{t+k}, from its definition.
            for k in range(t, LENGTHS[i]):
                following = p.old_values[i, k + 1] if k + 1 < LENGTHS[i] else 0.0
                delta = rewards[i, k] + s.gamma * following - p.old_values[i, k]
                advantages[i, t] += (s.gamma * s.lam) ** (k - t) * delta
            returns[i, t] = advantages[i, t] + p.old_values[i, t]
    kept = [(i, t) for i, t in cells if not gated(p, s, i)]
    all_advantages = [advantages[cell] for cell in kept]
    mean, variance = np.mean(all_advantages), np.var(all_advantages)
    for cell in kept:
        advantages[cell] = (advantages[cell] - mean) / math.sqrt(variance + 1e-8)
    total, weight = 0.0, sum(p.weights[i] for i, _ in kept)
    by_logprob, by_value = np.zeros((6, WIDTH)), np.zeros((6, WIDTH))
    for i, t in kept:
        loss, slope = policy_term(p, s, i, t, advantages[i, t])
        critic_loss, critic_slope = critic_term(p, s, i, t, returns[i, t])
        total += loss / weight + s.value_coef * critic_loss / len(kept)
        by_logprob[i, t] = slope / weight
        by_value[i, t] = s.value_coef * critic_slope / len(kept)
    return total, by_logprob, by_value


def gated(p: Problem, s: TrainerSettings, i: int) -> bool:
    n = LENGTHS[i]
    return bool(abs(np.mean(p.old[i, :n] - p.generation[i, :n])) > math.log(s.sequence_gate))


def policy_term(
    p: Problem, s: TrainerSettings, i: int, t: int, advantage: float
) -> tuple[float, float]:
    n = LENGTHS[i]
    importance = min(math.exp(p.old[i, t] - p.generation[i, t]), s.importance_cap)
    if s.importance_sampling == "sequence_mask":
        importance = math.exp(np.sum(p.old[i, :n] - p.generation[i, :n]))
        importance *= importance <= s.importance_cap
    limit = s.off_policy_mask_threshold
    if limit is not None and np.mean(p.generation[i, :n] - p.old[i, :n]) > limit:
        advantage = max(advantage, 0.0)
    weight = importance * p.weights[i]
    ratio = math.exp(p.policy[i, t] - p.old[i, t])
    free, slope = -advantage * ratio, -advantage * ratio
    clipped = -advantage * min(max(ratio, 1 - s.clip), 1 + s.clip)
    loss = free
    if clipped > loss:
        loss, slope = clipped, 0.0
    if advantage < 0 and loss > -advantage * s.dual_clip:
        loss, slope = -advantage * s.dual_clip, 0.0
    return weight * loss, weight * slope


def critic_term(
    p: Problem, s: TrainerSettings, i: int, t: int, target: float
) -> tuple[float, float]:
    value, old = p.values[i, t], p.old_values[i, t]
    inside = min(max(value, old - s.value_clip), old + s.value_clip)
    free, bound = (value - target) ** 2, (inside - target) ** 2
    if free > bound or inside == value:
        return 0.5 * free, value - target
    return 0.5 * bound, 0.0


def plan_of(
    p: Problem, s: TrainerSettings, controls: StepControls | None = None
) -> tuple[Any, GivenModel]:
    samples = [
        ScoredSample(
            sample_id=str(i),
            sequence=TokenSequence(
                prompt_token_ids=(i + 1,),
                completion_token_ids=tuple(100 * i + t for t in range(length)),
                generation_logprobs=tuple(p.generation[i, :length].tolist()),
                temperature=1.0,
            ),
            reward=float(p.rewards[i]),
            policy_version=0,
            stopped=bool(p.stopped[i]),
            weight=float(p.weights[i]),
        )
        for i, length in enumerate(LENGTHS)
    ]
    model: Any = GivenModel(
        [sample.sequence for sample in samples],
        old=torch.tensor(p.old),
        policy=torch.tensor(p.policy),
        reference=torch.tensor(p.reference),
        old_values=torch.tensor(p.old_values),
        values=torch.tensor(p.values),
    )
    return plan_ppo(model, samples, s, controls or StepControls()), model


@pytest.mark.parametrize("budget", [1, 1000])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lam": 0.95, "gamma": 0.9},
        {"dual_clip": 1.2, "value_clip": 0.05, "clip": 0.1},
        {"whiten_rewards": True, "kl_coef": 0.3},
        {"importance_cap": 1.1, "sequence_gate": 9.0, "reward_clip": 3.0},
        {"importance_sampling": "sequence_mask", "off_policy_mask_threshold": 0.01},
    ],
    ids=str,
)
def test_loss_and_gradients_of_a_batch(options: dict[str, Any], budget: int) -> None:
    problem = make_problem(7)
    settings = TrainerSettings(token_budget=budget, **options)
    plan, model = plan_of(problem, settings)
    loss, by_logprob, by_value = reference_loss(problem, settings)
    assert float(total_loss(plan)) == pytest.approx(loss, abs=1e-9)
    assert model.policy.grad is not None
    assert model.values is not None
    assert model.values.grad is not None
    assert np.abs(model.policy.grad.numpy() - by_logprob).max() < 1e-9
    assert np.abs(model.values.grad.numpy() - by_value).max() < 1e-9
    assert np.abs(by_logprob).max() > 1e-3
    assert np.abs(by_value).max() > 1e-3
    if "sequence_gate" not in options:
        assert by_logprob[3].tolist() == [0.0] * WIDTH


def test_the_clips_of_the_reference_are_all_in_use() -> None:
    """Else the comparison above would say nothing of them."""
    problem, settings = make_problem(7), TrainerSettings(dual_clip=1.2, clip=0.1, value_clip=0.05)
    ratios = [math.exp(problem.policy[i, t] - problem.old[i, t]) for i in range(6) for t in (0,)]
    assert any(ratio > 1.2 for ratio in ratios)
    assert any(ratio < 0.9 for ratio in ratios)
    slopes = [critic_term(problem, settings, 0, t, 5.0)[1] for t in range(5)]
    assert 0.0 in slopes
    assert any(slopes)


def test_while_the_critic_warms_up_the_policy_has_no_gradient() -> None:
    problem, settings = make_problem(7), TrainerSettings(critic_warmup_steps=1)
    plan, model = plan_of(problem, settings, StepControls(critic_only=True))
    total_loss(plan)
    assert model.policy.grad is None
    assert model.values is not None
    assert model.values.grad is not None
    assert np.abs(model.values.grad.numpy() - reference_loss(problem, settings)[2]).max() < 1e-9


def test_an_adapted_coefficient_is_the_coefficient() -> None:
    problem = make_problem(7)
    adapted, adapted_model = plan_of(
        problem, TrainerSettings(kl_coef=0.1), StepControls(kl_factor=3.0)
    )
    plain, plain_model = plan_of(problem, TrainerSettings(kl_coef=0.1 * 3.0))
    assert float(total_loss(adapted)) == float(total_loss(plain))
    assert torch.equal(adapted_model.policy.grad, plain_model.policy.grad)  # type: ignore[arg-type]
