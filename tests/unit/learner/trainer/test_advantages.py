"""Rewards to advantages: by hand, and to the closed-form optimum of a small problem."""

import pytest
import torch
from torch import Tensor

from tuneloop.learner.losses.ppo import ppo_policy_loss
from tuneloop.learner.trainer.advantages import generalized_advantages, kl_penalized_rewards, whiten

MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_reward_lands_on_the_last_completion_token_and_kl_on_each() -> None:
    rewards = kl_penalized_rewards(
        scores=torch.tensor([1.0, 2.0]),
        old_logprobs=torch.tensor([[-1.0, -2.0, -3.0], [-1.0, 9.0, 9.0]]),
        ref_logprobs=torch.tensor([[-2.0, -2.0, -1.0], [-0.5, 7.0, 7.0]]),
        loss_mask=MASK,
        kl_coef=0.1,
    )
    expected = [-0.1, 0.0, 0.2 + 1.0, 0.05 + 2.0, 0.0, 0.0]
    assert rewards.flatten().tolist() == pytest.approx(expected)


def test_generalized_advantages_by_hand() -> None:
    advantages, returns = generalized_advantages(
        rewards=torch.tensor([[0.0, 0.0, 1.0], [2.0, 0.0, 0.0]]),
        values=torch.tensor([[0.1, 0.2, 0.4], [0.5, 50.0, 60.0]]),
        loss_mask=MASK,
        gamma=0.9,
        lam=0.8,
    )
    third = 1.0 - 0.4
    second = 0.9 * 0.4 - 0.2 + 0.72 * third
    first = 0.9 * 0.2 - 0.1 + 0.72 * second
    expected = [first, second, third, 1.5, 0.0, 0.0]
    assert advantages.flatten().tolist() == pytest.approx(expected)
    assert returns[0].tolist() == pytest.approx([first + 0.1, second + 0.2, third + 0.4])
    assert returns[1].tolist() == pytest.approx([2.0, 0.0, 0.0])


def test_with_gamma_and_lambda_1_the_return_is_the_reward_to_go() -> None:
    rewards = torch.tensor([[0.5, -0.25, 1.0]])
    values = torch.tensor([[3.0, -2.0, 0.7]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    _, returns = generalized_advantages(
        rewards=rewards, values=values, loss_mask=mask, gamma=1.0, lam=1.0
    )
    assert returns[0].tolist() == pytest.approx([1.25, 0.75, 1.0])


def test_whitening_counts_unmasked_tokens_only() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [6.0, 1e6, 1e6]])
    whitened = whiten(values, MASK)
    assert whitened[MASK].mean().item() == pytest.approx(0.0, abs=1e-6)
    assert whitened[MASK].var(unbiased=False).item() == pytest.approx(1.0, rel=1e-5)
    assert whitened[~MASK].tolist() == [0.0, 0.0]
    kept_mean = whiten(values, MASK, shift_mean=False)
    assert kept_mean[MASK].mean().item() == pytest.approx(3.0)
    one = torch.tensor([[True, False, False], [False, False, False]])
    assert torch.equal(whiten(values, one), values)


def test_ppo_with_k1_in_the_reward_finds_the_closed_form_optimum() -> None:
    """Eight one-token answers: π* ∝ π_ref·exp(r/β), in total variation."""
    torch.manual_seed(0)
    actions, beta = 8, 0.3
    ref = torch.log_softmax(torch.randn(actions, dtype=torch.float64), 0)
    scores = torch.rand(actions, dtype=torch.float64)
    logits = ref.clone().requires_grad_()
    adam = torch.optim.Adam([logits], lr=0.02)
    mask = torch.ones(actions, 1, dtype=torch.bool)

    def descend(old: Tensor) -> None:
        rewards = kl_penalized_rewards(
            scores=scores,
            old_logprobs=old.unsqueeze(-1),
            ref_logprobs=ref.unsqueeze(-1),
            loss_mask=mask,
            kl_coef=beta,
        )
        baseline = (old.exp() * rewards[:, 0]).sum().expand(actions, 1)
        advantages, _ = generalized_advantages(
            rewards=rewards, values=baseline, loss_mask=mask, gamma=1.0, lam=1.0
        )
        # Every answer once, weighted by how often it would be sampled: no noise.
        loss, _ = ppo_policy_loss(
            policy_logprobs=torch.log_softmax(logits, 0).unsqueeze(-1),
            old_logprobs=old.unsqueeze(-1),
            advantages=advantages,
            weights=old.exp().unsqueeze(-1),
            loss_mask=mask,
            clip=0.2,
            dual_clip=3.0,
            total_weight=1,
        )
        adam.zero_grad()
        loss.backward()
        adam.step()

    for _ in range(600):
        descend(torch.log_softmax(logits.detach(), 0))
    optimum = torch.softmax(ref + scores / beta, 0)
    assert 0.5 * (ref.exp() - optimum).abs().sum() > 0.1
    assert 0.5 * (torch.softmax(logits.detach(), 0) - optimum).abs().sum() < 0.005
