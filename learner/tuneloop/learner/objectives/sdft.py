"""SDFT on commented answers: the reference policy, shown the comment, teaches the policy."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tuneloop.learner.losses.means import Mean, total_of
from tuneloop.learner.losses.sdft import sdft_loss
from tuneloop.learner.models.batch import SequenceBatch, collate
from tuneloop.learner.models.lm_head import CHUNK_ELEMENTS
from tuneloop.learner.models.packing import send
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.objectives.base import Plan, cut, restrained, trusted_share
from tuneloop.learner.samples import CommentedSample
from tuneloop.learner.trainer.adaptive import AT_REST, StepControls
from tuneloop.learner.trainer.gradient_step import MicroLoss
from tuneloop.learner.trainer.settings import TrainerSettings


@torch.no_grad()
def plan_sdft(
    model: PolicyModel,
    samples: Sequence[CommentedSample],
    settings: TrainerSettings,
    controls: StepControls = AT_REST,
) -> Plan:
    """Plan SDFT on a batch of commented answers; for a KL budget the reference runs unhinted too.

    While the KL is above its budget, comments teach nothing: their answers are pulled back only.
    """
    trusted = trusted_share(samples)
    controls = controls.for_trusted(trusted)
    total_tokens = sum(len(s.sequence.completion_token_ids) for s in samples)
    total_weight = total_of(s.weight for s in samples)
    teaches = 0.0 if controls.kl_above else 1.0
    micro_losses: list[MicroLoss] = []
    for group in cut(samples, _for_whole_distributions(model, settings)):
        batch = collate([s.sequence for s in group], model.device)
        ref_logprobs = None if settings.kl_budget is None else model.reference_logprobs(batch)
        weights = send(torch.tensor([teaches * s.weight * s.trust for s in group]), model.device)
        micro_losses.append(
            _micro_loss(
                model,
                batch,
                settings,
                controls,
                hinted=collate([s.hinted for s in group], model.device),
                ref_logprobs=ref_logprobs,
                weights=weights,
                total_tokens=total_tokens,
                total_weight=total_weight,
            )
        )
    return Plan(micro_losses=micro_losses, tokens=total_tokens, trusted=trusted)


def _for_whole_distributions(model: PolicyModel, settings: TrainerSettings) -> TrainerSettings:
    """Return settings whose passes hold so few tokens that their logits fit."""
    elements = CHUNK_ELEMENTS.get(model.device.type, CHUNK_ELEMENTS["cuda"])
    most = max(1, elements // model.vocab_size)
    return replace(settings, token_budget=min(settings.tokens_at_once, most))


def _micro_loss(
    model: PolicyModel,
    batch: SequenceBatch,
    settings: TrainerSettings,
    controls: StepControls,
    *,
    hinted: SequenceBatch,
    ref_logprobs: Tensor | None,
    weights: Tensor,
    total_tokens: int,
    total_weight: float,
) -> MicroLoss:
    def run() -> tuple[Tensor, dict[str, Mean]]:
        logprobs, divergences = model.logprobs_and_divergences(
            batch, hinted=hinted, live=settings.sdft_teacher == "live"
        )
        loss, metrics = sdft_loss(
            divergences=divergences,
            weights=weights,
            loss_mask=batch.loss_mask,
            clip=settings.sdft_clip,
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
