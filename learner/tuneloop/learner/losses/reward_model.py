"""Losses of the reward model: Bradley–Terry on pairs, binary cross-entropy on thumbs.

* Pairs: −log σ(r_chosen − r_rejected − margin), Bradley and Terry 1952 as in Ouyang et al. 2022,
  https://arxiv.org/abs/2203.02155, equation 1; the margin as in Llama 2,
  https://arxiv.org/abs/2307.09288, equation 2.
* Plus 0.01·(r_chosen + r_rejected)², which keeps the scores around 0: only their difference is
  determined by pairs (Eisenstein et al. 2023, https://arxiv.org/abs/2312.09244, section 2).
* Thumbs: −log σ(±r), so that the score is the log-odds of a thumb up.
"""

import torch
from torch import Tensor
from torch.nn import functional

from tuneloop.learner.losses.means import Mean, mean_over

CENTERING = 0.01
"""Weight of the squared sum of a pair's scores."""


def bradley_terry_loss(
    *,
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    margins: Tensor,
    weights: Tensor,
    total_pairs: int,
) -> tuple[Tensor, dict[str, Mean]]:
    """Return the pairs' loss of a micro-batch and its metrics; all (B,), scores take gradients."""
    differences = chosen_scores - rejected_scores
    centering = CENTERING * (chosen_scores + rejected_scores).square()
    losses = weights * (centering - functional.logsigmoid(differences - margins))
    everything = torch.ones_like(differences, dtype=torch.bool)
    metrics = {
        "pair_accuracy": mean_over((differences > 0).to(differences.dtype), everything),
        "pair_margin": mean_over(differences, everything),
    }
    return losses.sum() / total_pairs, metrics


def thumb_loss(
    *, scores: Tensor, desirable: Tensor, weights: Tensor, total_samples: int
) -> tuple[Tensor, dict[str, Mean]]:
    """Return the thumbs' loss of a micro-batch and its metrics; all (B,), scores take gradients."""
    sign = torch.where(desirable, 1.0, -1.0).to(scores.dtype)
    losses = weights * -functional.logsigmoid(sign * scores)
    everything = torch.ones_like(desirable)
    metrics = {
        "label_accuracy": mean_over((sign * scores > 0).to(scores.dtype), everything),
        "desirable_score": mean_over(scores, desirable),
        "undesirable_score": mean_over(scores, ~desirable),
    }
    return losses.sum() / total_samples, metrics
