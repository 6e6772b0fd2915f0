"""KTO on thumbs: class balance and reference point over the batch, then the loss."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tuneloop.learner.losses.kto import (
    RAREST,
    class_weights,
    kto_loss,
    reference_point,
    two_sidedness,
)
from tuneloop.learner.losses.means import Mean, mean_over, total_of
from tuneloop.learner.models.batch import SequenceBatch, collate, micro_batches, sequence_length
from tuneloop.learner.models.packing import send
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.objectives.base import Plan, cut, restrained, trusted_share
from tuneloop.learner.samples import ThumbSample, TokenSequence
from tuneloop.learner.trainer.adaptive import AT_REST, StepControls
from tuneloop.learner.trainer.gradient_step import MicroLoss
from tuneloop.learner.trainer.settings import TrainerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ThumbRows:
    """What a micro-batch holds fixed while the policy moves."""

    batch: SequenceBatch
    ref_logprobs: Tensor  # (B, C)
    desirable: Tensor  # (B,) bool
    weights: Tensor  # (B,)


@torch.no_grad()
def plan_kto(
    model: PolicyModel,
    samples: Sequence[ThumbSample],
    settings: TrainerSettings,
    controls: StepControls = AT_REST,
) -> Plan:
    """Plan KTO on a batch of thumbs."""
    trusted = trusted_share(samples)
    controls = controls.for_trusted(trusted)
    groups = cut(samples, settings)
    z = torch.zeros(1, device=model.device)
    if settings.kto_z == "mismatched":
        z = mismatched_reference_point(model, samples, settings).reshape(1)
    ordered = [sample for group in groups for sample in group]
    desirable = send(torch.tensor([s.desirable for s in ordered]), model.device)
    weights = send(torch.tensor([s.weight * s.trust for s in ordered]), model.device)
    factors = torch.where(desirable, settings.desirable_weight, settings.undesirable_weight)
    weights = weights * factors * class_weights(desirable, controls.desirable_share, limit=RAREST)
    tokens = sum(len(s.sequence.completion_token_ids) for s in samples)
    total_weight = total_of(s.weight for s in samples)
    micro_losses: list[MicroLoss] = []
    start = 0
    for group in groups:
        of_group = slice(start, start + len(group))
        batch = collate([s.sequence for s in group], model.device)
        rows = ThumbRows(
            batch=batch,
            ref_logprobs=model.reference_logprobs(batch),
            desirable=desirable[of_group],
            weights=weights[of_group],
        )
        micro_losses.append(
            _micro_loss(
                model, rows, settings, controls, z=z, total_weight=total_weight, tokens=tokens
            )
        )
        start = of_group.stop
    measured = {"kto_z": mean_over(z, torch.ones_like(z, dtype=torch.bool))}
    return Plan(
        micro_losses=micro_losses,
        tokens=tokens,
        metrics=[measured],
        trusted=trusted * two_sidedness(controls.expected_share),
    )


def _micro_loss(
    model: PolicyModel,
    rows: ThumbRows,
    settings: TrainerSettings,
    controls: StepControls,
    *,
    z: Tensor,
    total_weight: float,
    tokens: int,
) -> MicroLoss:
    def run() -> tuple[Tensor, dict[str, Mean]]:
        logprobs = model.logprobs(rows.batch)
        loss, metrics = kto_loss(
            policy_logps=logprobs.sum(-1),
            ref_logps=rows.ref_logprobs.sum(-1),
            desirable=rows.desirable,
            weights=rows.weights,
            z=z,
            beta=settings.beta_kto,
            total_weight=total_weight,
        )
        return restrained(
            loss,
            metrics,
            batch=rows.batch,
            logprobs=logprobs,
            ref_logprobs=rows.ref_logprobs,
            controls=controls,
            total_tokens=tokens,
        )

    return run


@torch.no_grad()
def mismatched_reference_point(
    model: PolicyModel, samples: Sequence[ThumbSample], settings: TrainerSettings
) -> Tensor:
    """Return KTO's z over the whole batch: each completion after the next sample's prompt."""
    mismatched = [
        TokenSequence(
            prompt_token_ids=following.sequence.prompt_token_ids,
            completion_token_ids=sample.sequence.completion_token_ids,
            generation_logprobs=(),
            temperature=sample.sequence.temperature,
        )
        for sample, following in zip(samples, [*samples[1:], samples[0]], strict=True)
    ]
    limit = settings.max_length or model.max_length
    groups = micro_batches(
        [sequence for sequence in mismatched if sequence_length(sequence) <= limit],
        length=sequence_length,
        rows=1,
        token_budget=settings.tokens_at_once,
    )
    log_ratios = [torch.zeros(0, device=model.device)]
    for group in groups:
        batch = collate(group, model.device)
        log_ratios.append((model.logprobs(batch) - model.reference_logprobs(batch)).sum(-1))
    return reference_point(torch.cat(log_ratios))
