"""DPO on pairs; the two rows of a pair stay in one micro-batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tuneloop.learner.batching import SequenceBatch, collate
from tuneloop.learner.descent import MicroLoss
from tuneloop.learner.losses.dpo import dpo_loss
from tuneloop.learner.losses.means import Mean, log_ratio_kl
from tuneloop.learner.models import PolicyModel
from tuneloop.learner.plans.plan import Plan, cut
from tuneloop.learner.samples import PairSample
from tuneloop.learner.trainer_settings import TrainerSettings


@torch.no_grad()
def plan_dpo(model: PolicyModel, samples: Sequence[PairSample], settings: TrainerSettings) -> Plan:
    """Plan DPO on a batch of pairs."""
    micro_losses: list[MicroLoss] = []
    tokens = 0
    for group in cut(samples, settings):
        # All the chosen, then all the rejected: the halves of the batch.
        rows = [*(s.chosen for s in group), *(s.rejected for s in group)]
        weights = torch.tensor([s.weight for s in group], device=model.device)
        batch = collate(rows, model.device)
        micro_losses.append(
            _micro_loss(
                model, batch, weights=weights, beta=settings.beta_dpo, total_pairs=len(samples)
            )
        )
        tokens += batch.tokens
    return Plan(micro_losses=micro_losses, tokens=tokens)


def _micro_loss(
    model: PolicyModel, batch: SequenceBatch, *, weights: Tensor, beta: float, total_pairs: int
) -> MicroLoss:
    ref_logprobs = model.reference_logprobs(batch)
    ref_chosen, ref_rejected = ref_logprobs.sum(-1).chunk(2)

    def run() -> tuple[Tensor, dict[str, Mean]]:
        logprobs = model.logprobs(batch)
        policy_chosen, policy_rejected = logprobs.sum(-1).chunk(2)
        loss, metrics = dpo_loss(
            policy_chosen_logps=policy_chosen,
            policy_rejected_logps=policy_rejected,
            ref_chosen_logps=ref_chosen,
            ref_rejected_logps=ref_rejected,
            weights=weights,
            beta=beta,
            total_pairs=total_pairs,
        )
        metrics["kl"] = log_ratio_kl(logprobs, ref_logprobs, batch.loss_mask)
        return loss, metrics

    return run
