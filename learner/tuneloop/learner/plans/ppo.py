"""PPO on scored completions: rewards, advantages and weights over the batch, then the loss."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tuneloop.learner.advantages import generalized_advantages, kl_penalized_rewards, whiten
from tuneloop.learner.batching import SequenceBatch, collate
from tuneloop.learner.descent import MicroLoss
from tuneloop.learner.losses.means import Mean, log_ratio_kl, mean_over
from tuneloop.learner.losses.ppo import (
    importance_weights,
    ppo_policy_loss,
    sequence_gate,
    value_loss,
)
from tuneloop.learner.models import PolicyModel
from tuneloop.learner.plans.plan import Plan, cut
from tuneloop.learner.samples import ScoredSample
from tuneloop.learner.trainer_settings import TrainerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class PpoRows:
    """What a micro-batch holds fixed while the policy moves; tensors are (B, C)."""

    batch: SequenceBatch
    loss_mask: Tensor
    """The batch's, without the sequences that the gate left out."""
    old_logprobs: Tensor
    old_values: Tensor
    ref_logprobs: Tensor
    advantages: Tensor
    returns: Tensor
    weights: Tensor
    """Importance weight times sample weight."""


@torch.no_grad()
def plan_ppo(
    model: PolicyModel, samples: Sequence[ScoredSample], settings: TrainerSettings
) -> Plan:
    """Plan PPO on a batch of scored completions."""
    measured = [measure(model, group, settings) for group in cut(samples, settings)]
    fixed = whiten_together([rows for rows, _ in measured])
    total_tokens = max(1, sum(int(rows.loss_mask.sum()) for rows in fixed))
    return Plan(
        micro_losses=[_micro_loss(model, rows, settings, total_tokens) for rows in fixed],
        tokens=sum(rows.batch.tokens for rows in fixed),
        metrics=[metrics for _, metrics in measured],
    )


def measure(
    model: PolicyModel, samples: Sequence[ScoredSample], settings: TrainerSettings
) -> tuple[PpoRows, dict[str, Mean]]:
    """Return what is fixed for a micro-batch, advantages not yet whitened, and its metrics."""
    device = model.device
    batch = collate([s.sequence for s in samples], device)
    old_logprobs, old_values = model.logprobs_and_values(batch)
    ref_logprobs = model.reference_logprobs(batch)
    given_rewards = torch.tensor([s.reward for s in samples], device=device)
    stopped = torch.tensor([s.stopped for s in samples], device=device)
    scores = given_rewards.clamp(-settings.reward_clip, settings.reward_clip)
    scores = scores - settings.missing_stop_penalty * ~stopped
    rewards = kl_penalized_rewards(
        scores=scores,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        loss_mask=batch.loss_mask,
        kl_coef=settings.kl_coef,
    )
    advantages, returns = generalized_advantages(
        rewards=rewards,
        values=old_values,
        loss_mask=batch.loss_mask,
        gamma=settings.gamma,
        lam=settings.lam,
    )
    # Where the sampler's log-probs are not known, the sampler is taken to be the old policy.
    generation_logprobs = batch.generation_logprobs.where(
        ~batch.generation_logprobs.isnan(), old_logprobs
    )
    off_policy = {
        "old_logprobs": old_logprobs,
        "generation_logprobs": generation_logprobs,
        "loss_mask": batch.loss_mask,
    }
    importance = importance_weights(**off_policy, cap=settings.importance_cap)
    kept = sequence_gate(**off_policy, limit=settings.sequence_gate)
    sample_weights = torch.tensor([s.weight for s in samples], device=device)
    rows = PpoRows(
        batch=batch,
        loss_mask=batch.loss_mask & kept.unsqueeze(-1),
        old_logprobs=old_logprobs,
        old_values=old_values,
        ref_logprobs=ref_logprobs,
        advantages=advantages,
        returns=returns,
        weights=importance * sample_weights.unsqueeze(-1),
    )
    return rows, {
        "reward": mean_over(given_rewards, torch.ones_like(stopped)),
        "stopped_fraction": mean_over(stopped.to(scores.dtype), torch.ones_like(stopped)),
        "importance_weight": mean_over(importance, batch.loss_mask),
        "gated_fraction": mean_over((~kept).to(scores.dtype), torch.ones_like(kept)),
    }


def whiten_together(groups: Sequence[PpoRows]) -> list[PpoRows]:
    """Whiten the advantages over the tokens of all micro-batches.

    One sequence alone is left as it is: its own mean is no baseline for it.
    """
    if sum(int(rows.loss_mask.any(-1).sum()) for rows in groups) < 2:
        return list(groups)
    flat = torch.cat([rows.advantages[rows.loss_mask] for rows in groups])
    flat = whiten(flat.unsqueeze(0), torch.ones_like(flat, dtype=torch.bool).unsqueeze(0))[0]
    parts = torch.split(flat, [int(rows.loss_mask.sum()) for rows in groups])
    return [
        replace(
            rows,
            advantages=torch.zeros_like(rows.advantages).masked_scatter(rows.loss_mask, part),
        )
        for rows, part in zip(groups, parts, strict=True)
    ]


def _micro_loss(
    model: PolicyModel, rows: PpoRows, settings: TrainerSettings, total_tokens: int
) -> MicroLoss:
    def run() -> tuple[Tensor, dict[str, Mean]]:
        logprobs, values = model.logprobs_and_values(rows.batch)
        policy_loss, policy_metrics = ppo_policy_loss(
            policy_logprobs=logprobs,
            old_logprobs=rows.old_logprobs,
            advantages=rows.advantages,
            weights=rows.weights,
            loss_mask=rows.loss_mask,
            clip=settings.clip,
            dual_clip=settings.dual_clip,
            total_tokens=total_tokens,
        )
        critic_loss, critic_metrics = value_loss(
            values=values,
            old_values=rows.old_values,
            returns=rows.returns,
            loss_mask=rows.loss_mask,
            value_clip=settings.value_clip,
            total_tokens=total_tokens,
        )
        metrics = policy_metrics | critic_metrics
        metrics["kl"] = log_ratio_kl(logprobs, rows.ref_logprobs, rows.batch.loss_mask)
        return policy_loss + settings.value_coef * critic_loss, metrics

    return run
