"""SFT on demonstrations."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tuneloop.learner.losses.means import Mean, total_of
from tuneloop.learner.losses.sft import sft_loss
from tuneloop.learner.models.batch import SequenceBatch, collate
from tuneloop.learner.models.packing import send
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.objectives.base import Plan, cut, restrained, trusted_share
from tuneloop.learner.samples import DemonstrationSample
from tuneloop.learner.trainer.adaptive import AT_REST, StepControls
from tuneloop.learner.trainer.gradient_step import MicroLoss
from tuneloop.learner.trainer.settings import TrainerSettings


@torch.no_grad()
def plan_sft(
    model: PolicyModel,
    samples: Sequence[DemonstrationSample],
    settings: TrainerSettings,
    controls: StepControls = AT_REST,
) -> Plan:
    """Plan SFT on a batch of demonstrations; the reference policy runs only for a KL budget."""
    trusted = trusted_share(samples)
    controls = controls.for_trusted(trusted)
    total_tokens = sum(len(s.sequence.completion_token_ids) for s in samples)
    total_weight = total_of(s.weight * len(s.sequence.completion_token_ids) for s in samples)
    micro_losses: list[MicroLoss] = []
    for group in cut(samples, settings):
        batch = collate([s.sequence for s in group], model.device)
        ref_logprobs = None if settings.kl_budget is None else model.reference_logprobs(batch)
        weights = send(torch.tensor([s.weight * s.trust for s in group]), model.device)
        micro_losses.append(
            _micro_loss(
                model,
                batch,
                controls,
                weights=weights,
                ref_logprobs=ref_logprobs,
                total_tokens=total_tokens,
                total_weight=total_weight,
            )
        )
    return Plan(micro_losses=micro_losses, tokens=total_tokens, trusted=trusted)


def _micro_loss(
    model: PolicyModel,
    batch: SequenceBatch,
    controls: StepControls,
    *,
    weights: Tensor,
    ref_logprobs: Tensor | None,
    total_tokens: int,
    total_weight: float,
) -> MicroLoss:
    def run() -> tuple[Tensor, dict[str, Mean]]:
        logprobs = model.logprobs(batch)
        loss, metrics = sft_loss(
            policy_logprobs=logprobs,
            weights=weights,
            loss_mask=batch.loss_mask,
            total_weight=total_weight,
        )
        return restrained(
            loss,
            metrics,
            batch=batch,
            logprobs=logprobs,
            ref_logprobs=ref_logprobs,
            controls=controls,
            total_tokens=total_tokens,
        )

    return run
