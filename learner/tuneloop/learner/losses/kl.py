"""The KL divergence to the reference policy as a loss: two estimators that restrain.

With l = log π − log π_ref on tokens that π_old sampled (Schulman, http://joschu.net/blog/kl-approx.html):

* k3 × ratio: (π/π_old)·(e^(−l) − 1 + l). The ratio is live, so that the gradient is that of the KL
  divergence: k3 alone pulls towards another optimum.
* k2: ½·l². Its gradient is that of the KL divergence, on tokens that π sampled.

k1 = l as a loss has gradient 0 in the mean and restrains nothing; it belongs into the reward.
"""

from typing import Literal

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to ± this before `exp`: e²⁰ is far past every clip, and finite."""

KlEstimator = Literal["k3", "k2"]


def kl_by_token(
    *, policy_logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor, estimator: KlEstimator
) -> Tensor:
    """Return the estimate for each token; all tensors (B, C), `policy_logprobs` takes gradients."""
    log_ratio = (policy_logprobs - ref_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    moved = (policy_logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return moved.exp() * ((-log_ratio).exp() - 1.0 + log_ratio)


def pull_loss(
    *, policy_logprobs: Tensor, ref_logprobs: Tensor, loss_mask: Tensor, total_tokens: int
) -> Tensor:
    """Return the k2 of a micro-batch, a scalar: what brings a policy back within its KL budget.

    All tensors (B, C); divided by `total_tokens`, those of the whole batch.
    """
    by_token = kl_by_token(
        policy_logprobs=policy_logprobs,
        old_logprobs=policy_logprobs,
        ref_logprobs=ref_logprobs,
        estimator="k2",
    )
    return torch.where(loss_mask, by_token, 0.0).sum() / total_tokens
