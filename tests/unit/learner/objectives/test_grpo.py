"""GRPO's and RLOO's plan: which completions take part, with which advantage, divided by what."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.given_model import GivenModel, total_loss
from torch import Tensor

from tuneloop.learner.objectives.grpo import plan_grpo
from tuneloop.learner.samples import ScoredGroup, ScoredSample, TokenSequence
from tuneloop.learner.trainer.adaptive import StepControls
from tuneloop.learner.trainer.advantages import group_advantages, leave_one_out_advantages
from tuneloop.learner.trainer.rewards import RewardStatistics
from tuneloop.learner.trainer.settings import TrainerSettings

WIDTH = 4


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def group(name: int, rewards: Sequence[float], baseline: float | None = None) -> ScoredGroup:
    """Completions of 1, 2, 3… tokens."""
    return ScoredGroup(
        sample_id=str(name),
        baseline=baseline,
        samples=tuple(
            ScoredSample(
                sample_id="",
                sequence=TokenSequence(
                    prompt_token_ids=(name,),
                    completion_token_ids=tuple(range(100 * name + 10 * i, 100 * name + 11 * i + 1)),
                    generation_logprobs=(),
                    temperature=1.0,
                ),
                reward=reward,
                policy_version=0,
                stopped=True,
            )
            for i, reward in enumerate(rewards)
        ),
    )


def gradient_of(
    groups: Sequence[ScoredGroup], controls: StepControls | None = None, **options: Any
) -> tuple[Tensor, GivenModel]:
    """The gradient by the log-probs, one row for each completion; at the old policy."""
    sequences = [s.sequence for g in groups for s in g.samples]
    old = torch.full((len(sequences), WIDTH), -1.0)
    reference = old - 0.25
    model: Any = GivenModel(sequences, old=old, policy=old, reference=reference)
    settings = TrainerSettings(**{"beta_grpo": 0.0, **options})
    total_loss(plan_grpo(model, groups, settings, controls or StepControls()))
    gradient = model.policy.grad
    return (torch.zeros_like(old) if gradient is None else gradient), model


@pytest.mark.parametrize("budget", [1, 1000])
def test_each_token_has_its_completions_advantage_divided_by_all_tokens(budget: int) -> None:
    groups = [group(1, [1.0, 0.0, 0.0]), group(2, [3.0, 5.0])]
    gradient, model = gradient_of(groups, token_budget=budget)
    first = group_advantages(torch.tensor([1.0, 0.0, 0.0]))
    second = group_advantages(torch.tensor([3.0, 5.0]))
    advantages = torch.cat([first, second])
    lengths = torch.tensor([1, 2, 3, 1, 2])
    expected = torch.where(
        torch.arange(WIDTH) < lengths.unsqueeze(-1), -advantages.unsqueeze(-1) / 9, 0.0
    )
    torch.testing.assert_close(gradient, expected)
    assert model.reference_passes == 0


@pytest.mark.parametrize(("estimator", "share"), [("grpo", 3 / 6), ("rloo", 2 / 4)])
def test_groups_without_spread_are_counted_but_not_computed(estimator: str, share: float) -> None:
    spread = group(1, [1.0, 0.0])
    alone, _ = gradient_of([spread], advantage_estimator=estimator)
    groups = [group(2, [0.5, 0.5]), spread]
    among, model = gradient_of(groups, advantage_estimator=estimator)
    torch.testing.assert_close(among[2:], share * alone)
    assert not among[:2].any()
    assert model.policy_passes == {groups[1].samples[0].sequence, groups[1].samples[1].sequence}


def test_what_was_not_scored_counts_for_nothing() -> None:
    spread = group(1, [1.0, 0.0])
    alone, _ = gradient_of([spread])
    among, _ = gradient_of([spread, group(4, [math.nan])])
    torch.testing.assert_close(among[:2], alone)
    assert not among[2:].any()
    partly, _ = gradient_of([group(1, [1.0, 0.0, math.nan])])
    torch.testing.assert_close(partly[:2], alone)
    assert not partly[2].any()


def test_a_completion_without_siblings_is_measured_by_a_baseline() -> None:
    running = StepControls(grpo_rewards=RewardStatistics(weight=50.0, mean=0.4, variance=0.25))
    lone = [group(1, [1.0]), group(2, [0.0], baseline=0.6)]
    gradient, _ = gradient_of(lone, running)
    of_rewards = torch.tensor([(1.0 - 0.4) / 0.5001, (0.0 - 0.6) / 0.5001])
    torch.testing.assert_close(gradient[:, 0], -of_rewards / 2)
    plain, _ = gradient_of(lone, running, scale_rewards="none")
    torch.testing.assert_close(plain[:, 0], torch.tensor([-0.3, 0.3]))
    unknown, _ = gradient_of([lone[0]])
    assert not unknown.any()
    wild = StepControls(grpo_rewards=RewardStatistics(weight=1.0, mean=0.4, variance=0.0))
    bounded, _ = gradient_of([lone[0]], wild)
    assert bounded[0, 0] == -10.0


@pytest.mark.parametrize("estimator", ["grpo", "rloo"])
def test_a_baseline_is_charged_for_what_was_cut_as_rewards_are(estimator: str) -> None:
    """All were cut and all scored alike: that is no reason to move."""
    lone = group(1, [0.5], baseline=0.5)
    cut = replace(lone, cut_share=1.0, samples=(replace(lone.samples[0], stopped=False),))
    gradient, _ = gradient_of([cut], advantage_estimator=estimator)
    assert not gradient.any()
    # One that stopped, where half are cut at a price of 1: the baseline is 0.5 − 0.5.
    stopped, _ = gradient_of([replace(lone, cut_share=0.5)], advantage_estimator=estimator)
    assert stopped[0, 0] == pytest.approx(-0.5)


def test_rloo_takes_the_kl_of_whole_completions_into_the_reward() -> None:
    gradient, _ = gradient_of(
        [group(1, [1.0, 0.0, 0.5])], advantage_estimator="rloo", beta_grpo=0.2
    )
    # log π_old − log π_ref is a quarter for each token.
    rewards = torch.tensor([1.0, 0.0, 0.5]) - 0.2 * 0.25 * torch.tensor([1.0, 2.0, 3.0])
    advantages = leave_one_out_advantages(rewards)
    for row in range(3):
        expected = torch.where(torch.arange(WIDTH) <= row, -advantages[row] / 3, 0.0)
        torch.testing.assert_close(gradient[row], expected)


def test_the_kl_term_pulls_towards_the_reference() -> None:
    # At the old policy the gradient of k3 × ratio is log π − log π_ref, as that of k2.
    for estimator in ("k3", "k2"):
        free, _ = gradient_of([group(1, [1.0, 0.0])])
        held, model = gradient_of([group(1, [1.0, 0.0])], beta_grpo=0.5, grpo_kl=estimator)
        mask = torch.tensor([[1.0, 0, 0, 0], [1.0, 1.0, 0, 0]])
        torch.testing.assert_close(held - free, 0.5 * 0.25 * mask / 3)
        assert model.reference_passes == 1


def test_the_kl_term_can_pull_solved_groups_too() -> None:
    """By hand: three tokens, each with 0.5 times its log-ratio of a quarter, over three."""
    solved = [group(1, [1.0, 1.0])]
    skipped, model = gradient_of(solved, beta_grpo=0.5)
    assert not skipped.any()
    assert model.reference_passes == 0
    held, _ = gradient_of(solved, beta_grpo=0.5, restrain_solved_groups=True)
    mask = torch.tensor([[1.0, 0, 0, 0], [1.0, 1.0, 0, 0]])
    torch.testing.assert_close(held, 0.5 * 0.25 * mask / 3)
    free, _ = gradient_of(solved, restrain_solved_groups=True)
    assert not free.any()


def sampled_at(made: ScoredGroup, logprob: float) -> ScoredGroup:
    """The group as a sampler gave it, with one log-prob for every token."""
    samples = [
        replace(
            s,
            sequence=replace(
                s.sequence, generation_logprobs=(logprob,) * len(s.sequence.completion_token_ids)
            ),
        )
        for s in made.samples
    ]
    return replace(made, samples=tuple(samples))


@pytest.mark.parametrize("estimator", ["grpo", "rloo"])
def test_disliked_sequences_far_off_policy_are_left_out(estimator: str) -> None:
    """The policy gives every token −1, the sampler gave −0.5: it is 0.5 below on average."""
    groups = [sampled_at(group(1, [1.0, 0.0]), -0.5)]
    whole, _ = gradient_of(groups, advantage_estimator=estimator)
    masked, _ = gradient_of(groups, advantage_estimator=estimator, off_policy_mask_threshold=0.4)
    assert whole[1, 0] > 0
    assert not masked[1].any()
    torch.testing.assert_close(masked[0], whole[0])
    near, _ = gradient_of(groups, advantage_estimator=estimator, off_policy_mask_threshold=0.6)
    torch.testing.assert_close(near, whole)


def test_past_the_kl_budget_every_token_is_pulled_too() -> None:
    free, _ = gradient_of([group(1, [1.0, 0.0])])
    pulled, _ = gradient_of([group(1, [1.0, 0.0])], StepControls(kl_pull=2.0), kl_budget=0.01)
    mask = torch.tensor([[1.0, 0, 0, 0], [1.0, 1.0, 0, 0]])
    torch.testing.assert_close(pulled - free, 2.0 * 0.25 * mask / 3)


def test_group_advantages_by_hand() -> None:
    rewards = torch.tensor([1.0, 3.0, math.nan])
    deviation = math.sqrt(2.0)
    expected = torch.tensor([-1.0, 1.0, 0.0]) / (deviation + 1e-4)
    torch.testing.assert_close(group_advantages(rewards), expected)
    plain = group_advantages(rewards, by_spread=False)
    torch.testing.assert_close(plain, torch.tensor([-1.0, 1.0, 0.0]))
    over = group_advantages(rewards, baseline=0.5)
    torch.testing.assert_close(over, torch.tensor([0.5, 2.5, 0.0]))
    assert group_advantages(torch.tensor([2.0])).tolist() == [0.0]
    left_out = leave_one_out_advantages(torch.tensor([1.0, 3.0, 5.0, math.nan]))
    torch.testing.assert_close(left_out, torch.tensor([-3.0, 0.0, 3.0, 0.0]))
    assert leave_one_out_advantages(torch.tensor([2.0])).tolist() == [0.0]
    assert leave_one_out_advantages(torch.tensor([2.0]), baseline=0.5).tolist() == [1.5]
