"""Losses of the reward model, one for each kind of feedback.

* Pairs: −log σ(r_chosen − r_rejected − margin), Bradley and Terry 1952 as in Ouyang et al. 2022,
  https://arxiv.org/abs/2203.02155, equation 1; the margin as in Llama 2,
  https://arxiv.org/abs/2307.09288, equation 2.
* Plus 0.01·(r_chosen + r_rejected)², which keeps the scores around 0: only their difference is
  determined by pairs (Eisenstein et al. 2023, https://arxiv.org/abs/2312.09244, section 2).
* Rankings of K answers: the mean of the pairs' loss over all C(K, 2) pairs (Ouyang et al. 2022,
  equation 1, whose 1/C(K, 2) this is); or Plackett and Luce: the chance of choosing the best, then
  the best of the rest, and so on, −1/(K−1)·Σ_{k<K} log(exp r_k / Σ_{j≥k} exp r_j) (Plackett 1975;
  Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, equation 18). The division by the K−1
  choices is ours: a ranking weighs as one judgement, however long. For K = 2 both are the pairs'.
* Thumbs: −log σ(±r), so that the score is the log-odds of a thumb up.
* Signals of a thumb that was not given: −p·λ_up·log σ(r) − (1 − p)·λ_down·log σ(−r), where p is its
  chance of being up: the expected loss of the thumb, with the weights λ of the two classes.
* Ratings, in standard deviations from the user's mean: the Huber loss at δ = 1 (Huber 1964), which
  grows as the error, not its square, beyond one standard deviation; or half the squared error.

Each function sums over a micro-batch and divides by the weights of its kind in the whole step.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from tuneloop.learner.losses.means import Mean, mean_over

CENTERING = 0.01
"""Weight of the squared sum of a pair's scores."""

RankingLoss = Literal["pairs", "plackett_luce"]
RatingLoss = Literal["huber", "mse"]


def bradley_terry_loss(
    *,
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    margins: Tensor,
    weights: Tensor,
    total_weight: float,
) -> tuple[Tensor, dict[str, Mean]]:
    """Return the pairs' loss of a micro-batch and its metrics; all (B,), scores take gradients."""
    losses = pair_losses(chosen_scores, rejected_scores, margins)
    differences = chosen_scores - rejected_scores
    return (weights * losses).sum() / total_weight, _pair_metrics(differences)


def pair_losses(chosen_scores: Tensor, rejected_scores: Tensor, margins: Tensor) -> Tensor:
    """Return the loss of each pair; all of one shape."""
    centering = CENTERING * (chosen_scores + rejected_scores).square()
    return centering - functional.logsigmoid(chosen_scores - rejected_scores - margins)


def ranking_loss(
    *, scores: Tensor, weights: Tensor, total_weight: float, kind: RankingLoss
) -> tuple[Tensor, dict[str, Mean]]:
    """Return the loss of B rankings of K ≥ 2 answers and its metrics.

    `scores` (B, K), best first, take gradients; `weights` (B,).
    """
    better, worse = torch.triu_indices(scores.shape[1], scores.shape[1], 1, device=scores.device)
    differences = scores[:, better] - scores[:, worse]
    if kind == "pairs":
        margins = torch.zeros_like(differences)
        losses = pair_losses(scores[:, better], scores[:, worse], margins).mean(1)
    else:
        losses = plackett_luce_losses(scores) / (scores.shape[1] - 1)
        # As for a pair, whose sum is twice its mean.
        losses = losses + CENTERING * (2 * scores.mean(1)).square()
    return (weights * losses).sum() / total_weight, _pair_metrics(differences)


def plackett_luce_losses(scores: Tensor) -> Tensor:
    """Return −log of the probability of each ranking, (B,); `scores` (B, K), best first."""
    remaining = scores.flip(1).logcumsumexp(1).flip(1)
    # The last answer is chosen of itself alone: its term is 0.
    return (remaining - scores)[:, :-1].sum(1)


def rating_loss(
    *, scores: Tensor, ratings: Tensor, weights: Tensor, total_weight: float, kind: RatingLoss
) -> tuple[Tensor, dict[str, Mean]]:
    """Return the ratings' loss of a micro-batch and its metrics.

    All (B,); `scores` take gradients, `ratings` are in standard deviations.
    """
    errors = scores - ratings
    if kind == "huber":
        losses = functional.huber_loss(scores, ratings, reduction="none", delta=1.0)
    else:
        losses = 0.5 * errors.square()
    everything = torch.ones_like(errors, dtype=torch.bool)
    return (weights * losses).sum() / total_weight, {
        "rating_error": mean_over(errors.abs(), everything)
    }


def thumb_loss(
    *, scores: Tensor, desirable: Tensor, weights: Tensor, total_weight: float
) -> tuple[Tensor, dict[str, Mean]]:
    """Return the thumbs' loss of a micro-batch and its metrics; all (B,), scores take gradients."""
    sign = torch.where(desirable, 1.0, -1.0).to(scores.dtype)
    losses = weights * -functional.logsigmoid(sign * scores)
    everything = torch.ones_like(desirable)
    right = mean_over((sign * scores > 0).to(scores.dtype), everything)
    metrics = {
        "label_accuracy": right,
        "accuracy": right,
        "desirable_score": mean_over(scores, desirable),
        "undesirable_score": mean_over(scores, ~desirable),
    }
    return losses.sum() / total_weight, metrics


def signal_loss(
    *,
    scores: Tensor,
    chances: Tensor,
    weights: Tensor,
    class_weights: tuple[Tensor, Tensor],
    total_weight: float,
) -> tuple[Tensor, dict[str, Mean]]:
    """Return the signals' loss of a micro-batch and its metrics; all (B,), scores take gradients.

    `class_weights` are those that a thumb up and a thumb down would have.
    """
    up, down = class_weights
    if_up = chances * up * functional.logsigmoid(scores)
    if_down = (1 - chances) * down * functional.logsigmoid(-scores)
    everything = torch.ones_like(chances, dtype=torch.bool)
    metrics = {"signal_chance": mean_over(chances, everything)}
    return -(weights * (if_up + if_down)).sum() / total_weight, metrics


def _pair_metrics(differences: Tensor) -> dict[str, Mean]:
    everything = torch.ones_like(differences, dtype=torch.bool)
    right = mean_over((differences > 0).to(differences.dtype), everything)
    return {
        "pair_accuracy": right,
        "accuracy": right,
        "pair_margin": mean_over(differences, everything),
    }
