"""SFT: supervised fine-tuning on answers as they should be; the mean over tokens of −log π.

    −Σ w·log π(y_t | x, y_<t) / Σ w, both over the completion tokens of the batch

The mean is over the tokens of the whole batch, so that a long answer weighs more than a short one,
as in pre-training; Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, section 3.5.
"""

import torch
from torch import Tensor

from tuneloop.learner.losses.means import Mean, mean_over


def sft_loss(
    *, policy_logprobs: Tensor, weights: Tensor, loss_mask: Tensor, total_weight: float
) -> tuple[Tensor, dict[str, Mean]]:
    """Return the SFT loss of a micro-batch and its metrics.

    Args:
        policy_logprobs: (B, C) log-prob of each completion token; takes gradients.
        weights: (B,) weight of each answer.
        loss_mask: (B, C) bool, true on completion tokens.
        total_weight: weights of the whole batch's completion tokens, which the loss is divided by.

    """
    losses = torch.where(loss_mask, -weights.unsqueeze(-1) * policy_logprobs, 0.0)
    return losses.sum() / total_weight, {"nll": mean_over(-policy_logprobs, loss_mask)}
