"""KTO on thumbs: class balance and reference point over the batch, then the loss."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tuneloop.learner.batching import SequenceBatch, collate, micro_batches, sequence_length
from tuneloop.learner.descent import MicroLoss
from tuneloop.learner.losses.kto import balanced_weights, kto_loss, reference_point
from tuneloop.learner.losses.means import Mean, log_ratio_kl, mean_over
from tuneloop.learner.models import PolicyModel
from tuneloop.learner.plans.plan import Plan, cut
from tuneloop.learner.samples import ThumbSample, TokenSequence
from tuneloop.learner.trainer_settings import TrainerSettings


@torch.no_grad()
def plan_kto(model: PolicyModel, samples: Sequence[ThumbSample], settings: TrainerSettings) -> Plan:
    """Plan KTO on a batch of thumbs."""
    groups = cut(samples, settings)
    z = torch.zeros(1, device=model.device)
    if settings.kto_z == "mismatched":
        z = mismatched_reference_point(model, samples, settings).reshape(1)
    ordered = [sample for group in groups for sample in group]
    desirable = torch.tensor([s.desirable for s in ordered], device=model.device)
    weights = torch.tensor([s.weight for s in ordered], device=model.device)
    weights = balanced_weights(desirable, weights)
    micro_losses: list[MicroLoss] = []
    tokens = start = 0
    for group in groups:
        rows = slice(start, start + len(group))
        micro_losses.append(
            _micro_loss(
                model,
                collate([s.sequence for s in group], model.device),
                desirable=desirable[rows],
                weights=weights[rows],
                z=z,
                beta=settings.beta_kto,
                total_samples=len(samples),
            )
        )
        tokens += sum(len(s.sequence.completion_token_ids) for s in group)
        start = rows.stop
    measured = {"kto_z": mean_over(z, torch.ones_like(z, dtype=torch.bool))}
    return Plan(micro_losses=micro_losses, tokens=tokens, metrics=[measured])


def _micro_loss(
    model: PolicyModel,
    batch: SequenceBatch,
    *,
    desirable: Tensor,
    weights: Tensor,
    z: Tensor,
    beta: float,
    total_samples: int,
) -> MicroLoss:
    ref_logprobs = model.reference_logprobs(batch)

    def run() -> tuple[Tensor, dict[str, Mean]]:
        logprobs = model.logprobs(batch)
        loss, metrics = kto_loss(
            policy_logps=logprobs.sum(-1),
            ref_logps=ref_logprobs.sum(-1),
            desirable=desirable,
            weights=weights,
            z=z,
            beta=beta,
            total_samples=total_samples,
        )
        metrics["kl"] = log_ratio_kl(logprobs, ref_logprobs, batch.loss_mask)
        return loss, metrics

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
