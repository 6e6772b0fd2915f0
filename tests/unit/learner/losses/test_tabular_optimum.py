"""The closed-form optimum π* ∝ π_ref·exp(r/β) is reached by the losses themselves, on tables.

Batches are exact: every completion there is, weighted by its probability, so that what is left of
the distance is the loss's own.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tuneloop.learner.losses.dpo import DpoLossType, dpo_loss
from tuneloop.learner.losses.grpo import grpo_loss, rloo_loss
from tuneloop.learner.losses.kl import KlEstimator
from tuneloop.learner.losses.ppo import ppo_policy_loss, value_loss
from tuneloop.learner.trainer.advantages import (
    generalized_advantages,
    group_advantages,
    kl_penalized_rewards,
    leave_one_out_advantages,
)

BETA = 0.3
TOKENS = 3
FIRST, SECOND = torch.cartesian_prod(torch.arange(TOKENS), torch.arange(TOKENS)).unbind(-1)
"""The two tokens of each of the nine completions."""


class Table:
    """Completions of two tokens: logits of the first, and of the second after each first."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(TOKENS + 1, TOKENS, dtype=torch.float64, generator=generator)
        self.rewards = torch.rand(9, dtype=torch.float64, generator=generator)
        self.reference = self.logprobs(logits)
        self.logits = logits.clone().requires_grad_()

    @staticmethod
    def logprobs(logits: Tensor) -> Tensor:
        """(9, 2)."""
        by_token = logits.log_softmax(-1)
        return torch.stack([by_token[0, FIRST], by_token[1 + FIRST, SECOND]], dim=-1)

    def distance(self) -> float:
        """Total variation to the optimum."""
        best = (self.reference.sum(-1) + self.rewards / BETA).softmax(-1)
        policy = self.logprobs(self.logits.detach()).sum(-1).exp()
        return float((best - policy).abs().sum() / 2)

    def descend(
        self, loss: Callable[[Tensor, Tensor], Tensor], steps: int = 250, epochs: int = 1
    ) -> None:
        """Minimise `loss` of the log-probs and of those at the start of each step."""
        optimizer = torch.optim.Adam([self.logits], lr=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            old = self.logprobs(self.logits.detach())
            for _ in range(epochs):
                optimizer.zero_grad()
                loss(self.logprobs(self.logits), old).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            schedule.step()


ALL = torch.ones(9, 2, dtype=torch.bool)


def test_ppo_with_k1_in_the_reward() -> None:
    table = Table(0)
    assert table.distance() > 0.1
    # States: the prompt, and the prompt with each first token.
    critic = torch.zeros(TOKENS + 1, dtype=torch.float64, requires_grad=True)
    critic_optimizer = torch.optim.Adam([critic], lr=0.05)

    def loss(policy: Tensor, old: Tensor) -> Tensor:
        values = torch.stack([critic[0].expand(9), critic[1 + FIRST]], dim=-1)
        rewards = kl_penalized_rewards(
            scores=table.rewards,
            old_logprobs=old,
            ref_logprobs=table.reference,
            loss_mask=ALL,
            kl_coef=BETA,
        )
        advantages, returns = generalized_advantages(
            rewards=rewards, values=values.detach(), loss_mask=ALL, gamma=1.0, lam=0.95
        )
        probabilities = old.sum(-1, keepdim=True).exp().expand(9, 2)
        critic_loss, _ = value_loss(
            values=values,
            old_values=values.detach(),
            returns=returns,
            loss_mask=ALL,
            value_clip=0.2,
            total_tokens=1,
        )
        critic_optimizer.zero_grad()
        critic_loss.backward()  # type: ignore[no-untyped-call]
        critic_optimizer.step()
        return ppo_policy_loss(
            policy_logprobs=policy,
            old_logprobs=old,
            advantages=advantages,
            weights=probabilities,
            loss_mask=ALL,
            clip=0.2,
            dual_clip=3.0,
            total_weight=1,
        )[0]

    table.descend(loss, epochs=2)
    assert table.distance() < 0.01


def test_rloo_with_k1_in_the_reward() -> None:
    table = Table(1)
    assert table.distance() > 0.1

    def loss(policy: Tensor, old: Tensor) -> Tensor:
        kl = (old - table.reference).sum(-1)
        return rloo_loss(
            policy_logps=policy.sum(-1),
            old_logps=old.sum(-1),
            # A baseline that is the same for all completions is exact on an exact batch.
            advantages=leave_one_out_advantages(table.rewards - BETA * kl, baseline=0.5),
            weights=old.sum(-1).exp(),
            epsilon=0.2,
            epsilon_high=0.28,
            dual_clip=3.0,
            total_weight=1,
        )[0]

    table.descend(loss)
    assert table.distance() < 0.01


@pytest.mark.parametrize("estimator", ["k3", "k2"])
def test_grpo_with_kl_on_completions_of_one_token(estimator: KlEstimator) -> None:
    """By token the KL of later tokens is not credited to earlier ones, so one token it is."""
    generator = torch.Generator().manual_seed(2)
    reference = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    logits = reference.clone().requires_grad_()
    rewards = torch.rand(3, 5, dtype=torch.float64, generator=generator)
    best = (reference.log_softmax(-1) + rewards / BETA).softmax(-1)
    advantages = torch.cat([group_advantages(group, by_spread=False) for group in rewards])
    optimizer = torch.optim.Adam([logits], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 250)
    for _ in range(250):
        policy = logits.log_softmax(-1).reshape(15, 1)
        old = policy.detach()
        loss, _ = grpo_loss(
            policy_logprobs=policy,
            old_logprobs=old,
            ref_logprobs=reference.log_softmax(-1).reshape(15, 1),
            advantages=advantages,
            weights=old.exp(),
            loss_mask=torch.ones(15, 1, dtype=torch.bool),
            epsilon=0.2,
            epsilon_high=0.28,
            dual_clip=3.0,
            beta=BETA,
            estimator=estimator,
            total_weight=3,
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    distance = (logits.detach().softmax(-1) - best).abs().sum(-1) / 2
    start = (reference.softmax(-1) - best).abs().sum(-1) / 2
    assert float(start.min()) > 0.1
    assert float(distance.max()) < 0.01


def dpo_distance(loss_type: DpoLossType, flipped: float, assumed: float) -> float:
    """Distance after DPO on all pairs, preferred with σ(r − r') and flipped with `flipped`."""
    table = Table(3)
    assert table.distance() > 0.1
    chosen, rejected = torch.cartesian_prod(torch.arange(9), torch.arange(9)).unbind(-1)
    preferred = torch.sigmoid(table.rewards[chosen] - table.rewards[rejected])
    reference = table.reference.sum(-1)

    def loss(policy: Tensor, old: Tensor) -> Tensor:
        logps = policy.sum(-1)
        return dpo_loss(
            policy_chosen_logps=logps[chosen],
            policy_rejected_logps=logps[rejected],
            ref_chosen_logps=reference[chosen],
            ref_rejected_logps=reference[rejected],
            chosen_lengths=torch.full((81,), 2),
            rejected_lengths=torch.full((81,), 2),
            flip_rates=torch.full((81,), assumed, dtype=torch.float64),
            weights=(1 - flipped) * preferred + flipped * (1 - preferred),
            beta=BETA,
            loss_type=loss_type,
            total_weight=81,
        )[0]

    table.descend(loss)
    return table.distance()


def test_dpo() -> None:
    assert dpo_distance("sigmoid", flipped=0.0, assumed=0.0) < 0.01


def test_robust_dpo_undoes_flipped_preferences_and_must_not_guess_too_high() -> None:
    assert dpo_distance("sigmoid", flipped=0.2, assumed=0.0) > 0.1
    assert dpo_distance("robust", flipped=0.2, assumed=0.2) < 0.01
    assert dpo_distance("robust", flipped=0.0, assumed=0.2) > 0.1
