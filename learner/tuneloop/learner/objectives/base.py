"""A batch, ready for gradients: one closure for each micro-batch.

What needs the whole batch (counts, class balance, whitening) and what takes no gradient (reference
and old log-probs, old values) is computed while planning. Calling a closure runs the policy with
gradients and returns that micro-batch's share of the loss.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from tuneloop.learner.losses.kl import pull_loss
from tuneloop.learner.losses.means import Mean, log_ratio_kl
from tuneloop.learner.models.batch import (
    SequenceBatch,
    micro_batches,
    packed_batches,
    sequence_length,
)
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.samples import PolicySample, sequences_of
from tuneloop.learner.trainer.adaptive import StepControls
from tuneloop.learner.trainer.gradient_step import MicroLoss
from tuneloop.learner.trainer.settings import TrainerSettings

S = TypeVar("S", bound=PolicySample)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The losses of one objective's batch."""

    micro_losses: Sequence[MicroLoss]
    """They sum to the batch's loss; each may be called once for each optimizer step."""
    tokens: int
    """Completion tokens learned from."""
    metrics: Sequence[dict[str, Mean]] = field(default_factory=list)
    """What was measured while planning."""
    trusted: float = 1.0
    """Part of the batch that counts as evidence: Σ weight·trust over Σ weight."""


def trusted_share(samples: Sequence[Any]) -> float:
    """Return Σ weight·trust over Σ weight; 0 where nothing weighs."""
    weights = math.fsum(sample.weight for sample in samples)
    trusted = math.fsum(sample.weight * sample.trust for sample in samples)
    return trusted / weights if weights > 0 else 0.0


class PolicyPass:
    """The log-probs of a micro-batch: as they are while planning, then with gradients.

    Up to the first optimizer step the two are the same. With `keep` one pass gives both, at the
    price of its graph, which lives until it is used: keep that of one micro-batch, no more.
    """

    def __init__(self, model: PolicyModel, batch: SequenceBatch, *, keep: bool) -> None:
        self._model, self._batch = model, batch
        with torch.set_grad_enabled(keep):
            logprobs = model.logprobs(batch)
        self.old_logprobs = logprobs.detach()
        """(B, C), without gradients."""
        self._kept: Tensor | None = logprobs if keep else None

    def logprobs(self) -> Tensor:
        """Return (B, C) log π of the policy as it is now; takes gradients."""
        kept, self._kept = self._kept, None
        return self._model.logprobs(self._batch) if kept is None else kept


def cut(samples: Sequence[S], settings: TrainerSettings) -> list[list[S]]:
    """Cut samples into micro-batches by the token budget; all are of one type."""
    if settings.packing:
        return packed_batches(samples, sequences=sequences_of, token_budget=settings.tokens_at_once)
    return micro_batches(
        samples,
        length=lambda sample: max(map(sequence_length, sequences_of(sample))),
        rows=max(len(sequences_of(sample)) for sample in samples),
        token_budget=settings.tokens_at_once,
    )


def restrained(
    loss: Tensor,
    metrics: dict[str, Mean],
    *,
    batch: SequenceBatch,
    logprobs: Tensor,
    ref_logprobs: Tensor | None,
    controls: StepControls,
    total_tokens: int,
) -> tuple[Tensor, dict[str, Mean]]:
    """Return a micro-batch's loss with the pull of `controls` added, its metrics with `kl` added.

    `logprobs` and `ref_logprobs` are (B, C); without the latter nothing is measured nor added.
    """
    if ref_logprobs is None:
        return loss, metrics
    measured = metrics | {"kl": log_ratio_kl(logprobs, ref_logprobs, batch.loss_mask)}
    if controls.kl_pull == 0:
        return loss, measured
    pull = pull_loss(
        policy_logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        loss_mask=batch.loss_mask,
        total_tokens=total_tokens,
    )
    return loss + controls.kl_pull * pull, measured
