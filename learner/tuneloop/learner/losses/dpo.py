"""DPO: direct preference optimization, which learns from pairs.

Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, equation 7:

    −log σ(β · [(log π − log π_ref)(chosen) − (log π − log π_ref)(rejected)])
"""

import torch
from torch import Tensor
from torch.nn import functional

from tuneloop.learner.losses.means import Mean, mean_over


def dpo_loss(
    *,
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    weights: Tensor,
    beta: float,
    total_pairs: int,
) -> tuple[Tensor, dict[str, Mean]]:
    """Return the DPO loss of a micro-batch of pairs and its metrics.

    Args:
        policy_chosen_logps: (B,) log π(y|x), summed over the completion's tokens; takes gradients.
        policy_rejected_logps: (B,) likewise.
        ref_chosen_logps: (B,) log π_ref(y|x).
        ref_rejected_logps: (B,) likewise.
        weights: (B,) weight of each pair.
        beta: strength of the restraint to the reference policy.
        total_pairs: pairs in the whole batch, which the loss is divided by.

    """
    chosen_margins = beta * (policy_chosen_logps - ref_chosen_logps)
    rejected_margins = beta * (policy_rejected_logps - ref_rejected_logps)
    differences = chosen_margins - rejected_margins
    loss = (weights * -functional.logsigmoid(differences)).sum() / total_pairs
    everything = torch.ones_like(differences, dtype=torch.bool)
    metrics = {
        "dpo_margin": mean_over(differences, everything),
        "dpo_accuracy": mean_over((differences > 0).to(differences.dtype), everything),
    }
    return loss, metrics
