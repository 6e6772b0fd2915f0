"""DPO on pairs; the two rows of a pair stay in one micro-batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tuneloop.learner.losses.dpo import dpo_loss
from tuneloop.learner.losses.means import Mean, total_of
from tuneloop.learner.models.batch import SequenceBatch, collate
from tuneloop.learner.models.packing import send
from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.objectives.base import Plan, cut, restrained, trusted_share
from tuneloop.learner.samples import PairSample
from tuneloop.learner.trainer.adaptive import AT_REST, StepControls
from tuneloop.learner.trainer.gradient_step import MicroLoss
from tuneloop.learner.trainer.settings import TrainerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRows:
    """What a micro-batch holds fixed while the policy moves."""

    batch: SequenceBatch
    """All the chosen, then all the rejected: the halves of the batch."""
    ref_logprobs: Tensor  # (2·B, C)
    weights: Tensor  # (B,)
    flip_rates: Tensor  # (B,)


@torch.no_grad()
def plan_dpo(
    model: PolicyModel,
    samples: Sequence[PairSample],
    settings: TrainerSettings,
    controls: StepControls = AT_REST,
) -> Plan:
    """Plan DPO on a batch of pairs."""
    trusted = trusted_share(samples)
    controls = controls.for_trusted(trusted)
    groups = [_rows(model, group, settings) for group in cut(samples, settings)]
    tokens = sum(rows.batch.tokens for rows in groups)
    total_weight = total_of(s.weight for s in samples)
    return Plan(
        micro_losses=[
            _micro_loss(model, rows, settings, controls, total_weight=total_weight, tokens=tokens)
            for rows in groups
        ],
        tokens=tokens,
        trusted=trusted,
    )


def _rows(model: PolicyModel, group: Sequence[PairSample], settings: TrainerSettings) -> PairRows:
    batch = collate([*(s.chosen for s in group), *(s.rejected for s in group)], model.device)
    given = settings.flip_rate
    rates = [s.flip_rate if given is None else given for s in group]
    return PairRows(
        batch=batch,
        ref_logprobs=model.reference_logprobs(batch),
        weights=send(torch.tensor([s.weight * s.trust for s in group]), model.device),
        flip_rates=send(torch.tensor(rates), model.device),
    )


def _micro_loss(
    model: PolicyModel,
    rows: PairRows,
    settings: TrainerSettings,
    controls: StepControls,
    *,
    total_weight: float,
    tokens: int,
) -> MicroLoss:
    ref_chosen, ref_rejected = rows.ref_logprobs.sum(-1).chunk(2)
    chosen_lengths, rejected_lengths = rows.batch.loss_mask.sum(-1).chunk(2)

    def run() -> tuple[Tensor, dict[str, Mean]]:
        logprobs = model.logprobs(rows.batch)
        policy_chosen, policy_rejected = logprobs.sum(-1).chunk(2)
        loss, metrics = dpo_loss(
            policy_chosen_logps=policy_chosen,
            policy_rejected_logps=policy_rejected,
            ref_chosen_logps=ref_chosen,
            ref_rejected_logps=ref_rejected,
            chosen_lengths=chosen_lengths,
            rejected_lengths=rejected_lengths,
            flip_rates=rows.flip_rates,
            weights=rows.weights,
            beta=settings.beta_dpo,
            loss_type=settings.dpo_loss_type,
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
