"""PPO on scored completions: rewards, advantages and weights over the batch, then the loss."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tuneloop.learner.losses.means import Mean, mean_over, total_of
from tuneloop.learner.losses.ppo import ppo_policy_loss, value_loss
from tuneloop.learner.models.batch import SequenceBatch, collate
from tuneloop.learner.models.packing import send
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.objectives.base import Plan, cut, restrained
from tuneloop.learner.objectives.off_policy import Rollouts, learned_from, rollouts_of
from tuneloop.learner.samples import ScoredSample
from tuneloop.learner.trainer.adaptive import AT_REST, StepControls
from tuneloop.learner.trainer.advantages import generalized_advantages, kl_penalized_rewards, whiten
from tuneloop.learner.trainer.gradient_step import MicroLoss
from tuneloop.learner.trainer.rewards import clipped_reward
from tuneloop.learner.trainer.settings import TrainerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class PpoRows:
    """What a micro-batch holds fixed while the policy moves; tensors are (B, C)."""

    rollouts: Rollouts
    ref_logprobs: Tensor
    rewards: Tensor
    """Of each token, the KL to the reference policy in it."""
    old_values: Tensor

    @property
    def batch(self) -> SequenceBatch:
        """The sequences."""
        return self.rollouts.batch

    @property
    def loss_mask(self) -> Tensor:
        """True on tokens that are learned from."""
        return self.rollouts.loss_mask


@torch.no_grad()
def plan_ppo(
    model: PolicyModel,
    samples: Sequence[ScoredSample],
    settings: TrainerSettings,
    controls: StepControls = AT_REST,
) -> Plan:
    """Plan PPO on a batch of scored completions."""
    measured = [measure(model, group, settings, controls) for group in cut(samples, settings)]
    groups = [rows for rows, _ in measured]
    rewards = [rows.rewards for rows in groups]
    if settings.whiten_rewards:
        masks = [rows.batch.loss_mask for rows in groups]
        rewards = whiten_together(rewards, masks, shift_mean=False)
    estimates = [
        generalized_advantages(
            rewards=reward,
            values=rows.old_values,
            loss_mask=rows.batch.loss_mask,
            gamma=settings.gamma,
            lam=settings.lam,
        )
        for reward, rows in zip(rewards, groups, strict=True)
    ]
    advantages = [advantage for advantage, _ in estimates]
    learned = learned_from([rows.rollouts for rows in groups])
    if len(learned) > 1:
        # One sequence alone is left as it is: its own mean is no baseline for it.
        advantages = whiten_together(advantages, [rows.loss_mask for rows in groups])
    for advantage, rows in zip(advantages, groups, strict=True):
        advantage.masked_fill_(rows.rollouts.is_far.unsqueeze(-1) & (advantage < 0), 0.0)
    lengths = [len(sample.sequence.completion_token_ids) for sample in learned]
    tokens = max(1, sum(lengths))
    weights = (sample.weight * length for sample, length in zip(learned, lengths, strict=True))
    total_weight = total_of(weights)
    return Plan(
        micro_losses=[
            _micro_loss(
                model,
                rows,
                settings,
                controls,
                advantages=advantage,
                returns=returns,
                total_tokens=tokens,
                total_weight=total_weight,
            )
            for rows, advantage, (_, returns) in zip(groups, advantages, estimates, strict=True)
        ],
        tokens=sum(rows.batch.tokens for rows in groups),
        metrics=[metrics for _, metrics in measured],
    )


def measure(
    model: PolicyModel,
    samples: Sequence[ScoredSample],
    settings: TrainerSettings,
    controls: StepControls,
) -> tuple[PpoRows, dict[str, Mean]]:
    """Return what is fixed for a micro-batch, and its metrics."""
    batch = collate([s.sequence for s in samples], model.device)
    old_logprobs, old_values = model.logprobs_and_values(batch)
    ref_logprobs = model.reference_logprobs(batch)
    scores = [clipped_reward(s, settings, controls.ppo_rewards) for s in samples]
    kl_coef = settings.kl_coef * controls.kl_factor
    rewards = kl_penalized_rewards(
        scores=send(torch.tensor(scores), model.device),
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        loss_mask=batch.loss_mask,
        kl_coef=kl_coef,
    )
    rollouts, metrics = rollouts_of(
        samples, batch, settings, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs
    )
    rows = PpoRows(
        rollouts=rollouts, ref_logprobs=ref_logprobs, rewards=rewards, old_values=old_values
    )
    completion_kl = (old_logprobs - ref_logprobs).sum(-1)
    everything = torch.ones_like(completion_kl, dtype=torch.bool)
    return rows, metrics | {
        "completion_kl": mean_over(completion_kl, everything),
        "kl_coef": mean_over(torch.full_like(completion_kl, kl_coef), everything),
    }


def whiten_together(
    parts: Sequence[Tensor], masks: Sequence[Tensor], *, shift_mean: bool = True
) -> list[Tensor]:
    """Whiten the tensors of all micro-batches, (B, C) each, over their unmasked tokens."""
    flat = torch.cat([part.flatten() for part in parts])
    chosen = torch.cat([mask.flatten() for mask in masks])
    flat = whiten(flat, chosen, shift_mean=shift_mean)
    pieces = torch.split(flat, [part.numel() for part in parts])
    return [piece.view_as(part) for part, piece in zip(parts, pieces, strict=True)]


def _micro_loss(
    model: PolicyModel,
    rows: PpoRows,
    settings: TrainerSettings,
    controls: StepControls,
    *,
    advantages: Tensor,
    returns: Tensor,
    total_tokens: int,
    total_weight: float,
) -> MicroLoss:
    def run() -> tuple[Tensor, dict[str, Mean]]:
        logprobs, values = model.logprobs_and_values(rows.batch)
        critic_loss, critic_metrics = value_loss(
            values=values,
            old_values=rows.old_values,
            returns=returns,
            loss_mask=rows.loss_mask,
            value_clip=settings.value_clip,
            total_tokens=total_tokens,
        )
        if controls.critic_only:
            return settings.value_coef * critic_loss, critic_metrics
        policy_loss, policy_metrics = ppo_policy_loss(
            policy_logprobs=logprobs,
            old_logprobs=rows.rollouts.old_logprobs,
            advantages=advantages,
            weights=rows.rollouts.weights,
            loss_mask=rows.loss_mask,
            clip=settings.clip,
            dual_clip=settings.dual_clip,
            total_weight=total_weight,
        )
        return restrained(
            policy_loss + settings.value_coef * critic_loss,
            policy_metrics | critic_metrics,
            batch=rows.batch,
            logprobs=logprobs,
            ref_logprobs=rows.ref_logprobs,
            controls=controls,
            total_tokens=total_tokens,
        )

    return run
