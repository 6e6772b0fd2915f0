"""What PPO and GRPO share: a micro-batch of scored completions, corrected for who sampled them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor

from tuneloop.learner.losses.means import Mean, mean_over
from tuneloop.learner.losses.ppo import importance_weights, is_far_off_policy, sequence_gate
from tuneloop.learner.models.batch import SequenceBatch
from tuneloop.learner.models.packing import send
from tuneloop.learner.samples import ScoredSample
from tuneloop.learner.trainer.settings import TrainerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """What a micro-batch holds fixed while the policy moves; tensors are (B, C)."""

    samples: Sequence[ScoredSample]
    batch: SequenceBatch
    loss_mask: Tensor
    """The batch's, without the sequences that the gate left out."""
    old_logprobs: Tensor
    ref_logprobs: Tensor | None
    generation_logprobs: Tensor
    """The sampler's; where they are not known, the sampler is taken to be the old policy."""
    weights: Tensor
    """Importance weight times sample weight."""
    is_far: Tensor
    """(B,) bool, where a negative advantage is left out; see `is_far_off_policy`."""


def learned_from(parts: Sequence[Rollouts]) -> list[ScoredSample]:
    """Return the samples that the gate did not leave out; one read, however many the parts are."""
    if not parts:
        return []
    kept = torch.cat([rows.loss_mask.any(-1) for rows in parts]).tolist()
    return list(compress((sample for rows in parts for sample in rows.samples), kept))


def rollouts_of(
    samples: Sequence[ScoredSample],
    batch: SequenceBatch,
    settings: TrainerSettings,
    *,
    old_logprobs: Tensor,
    ref_logprobs: Tensor | None,
) -> tuple[Rollouts, dict[str, Mean]]:
    """Return `samples`, collated as `batch`, with their off-policy correction, and its metrics."""
    generation_logprobs = batch.generation_logprobs.where(
        ~batch.generation_logprobs.isnan(), old_logprobs
    )
    importance = importance_weights(
        old_logprobs=old_logprobs,
        generation_logprobs=generation_logprobs,
        loss_mask=batch.loss_mask,
        cap=settings.importance_cap,
        kind=settings.importance_sampling,
    )
    kept = sequence_gate(
        old_logprobs=old_logprobs,
        generation_logprobs=generation_logprobs,
        loss_mask=batch.loss_mask,
        limit=settings.sequence_gate,
    )
    is_far = torch.zeros_like(kept)
    if settings.off_policy_mask_threshold is not None:
        is_far = is_far_off_policy(
            old_logprobs=old_logprobs,
            generation_logprobs=generation_logprobs,
            loss_mask=batch.loss_mask,
            threshold=settings.off_policy_mask_threshold,
        )
    device = old_logprobs.device
    weights = send(torch.tensor([s.weight * s.trust for s in samples]), device)
    rewards = send(torch.tensor([s.reward for s in samples]), device)
    stopped = send(torch.tensor([s.stopped for s in samples]), device)
    everything = torch.ones_like(stopped)
    metrics = {
        "reward": mean_over(rewards, ~rewards.isnan()),
        "stopped_fraction": mean_over(stopped.to(rewards.dtype), everything),
        "importance_weight": mean_over(importance, batch.loss_mask),
        "gated_fraction": mean_over((~kept).to(rewards.dtype), everything),
        "far_fraction": mean_over(is_far.to(rewards.dtype), everything),
        "surprisal": mean_over(-old_logprobs, batch.loss_mask),
    }
    rollouts = Rollouts(
        samples=samples,
        batch=batch,
        loss_mask=batch.loss_mask & kept.unsqueeze(-1),
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        generation_logprobs=generation_logprobs,
        weights=importance * weights.unsqueeze(-1),
        is_far=is_far,
    )
    return rollouts, metrics
