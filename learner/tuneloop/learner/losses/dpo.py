"""DPO: direct preference optimization, which learns from pairs; four variants.

With r = log π(y|x) − log π_ref(y|x), d = r(chosen) − r(rejected), and r̄, d̄ the same with each r
divided by the number of its completion's tokens:

* sigmoid: −log σ(β·d). Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, equation 7.
* sigmoid_norm: −log σ(β·d̄). Meng et al. 2024, https://arxiv.org/abs/2405.14734, equation 4, which
  leaves out the reference policy and adds a margin; here with reference and without margin, as in
  Lambert et al. 2024, https://arxiv.org/abs/2411.15124.
* ipo: (d̄ − 1/(2β))². Azar et al. 2023, https://arxiv.org/abs/2310.12036, equation 17; divided by
  length as its authors do it, else long answers would decide alone.
* robust: [(1 − ε)·ℓ(d) − ε·ℓ(−d)] / (1 − 2ε) with ℓ(d) = −log σ(β·d). Chowdhury et al. 2024,
  https://arxiv.org/abs/2403.00409: what `sigmoid` would be on the true preferences,
  in the mean, where a share ε is the wrong way round. As −log σ(−m) = m − log σ(m), it is
  ℓ(d) − c·β·d with c = ε/(1 − 2ε): `sigmoid` and a reward for every bit of margin, without end. The
  gradient −σ(−m) − c of a pair that nothing contradicts never comes to 0. So the reward counts
  margins up to ±M only, beyond which the loss is the sigmoid's and saturates; that is ours. M is
  where the gradient has become constant to within a tenth: σ(−M) = c/9, M = log(9/c − 1). It is
  3.3 for ε = 0.2, and grows without end as ε goes to 0.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from tuneloop.learner.losses.means import Mean, mean_over

DpoLossType = Literal["sigmoid", "sigmoid_norm", "ipo", "robust"]

HIGHEST_FLIP_RATE = 0.4
"""A larger ε is taken for this one: 1/(1 − 2ε) goes to infinity at ½, and the variance with it."""


def dpo_loss(
    *,
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    flip_rates: Tensor,
    weights: Tensor,
    beta: float,
    loss_type: DpoLossType,
    total_weight: float,
) -> tuple[Tensor, dict[str, Mean]]:
    """Return the DPO loss of a micro-batch of pairs and its metrics.

    Args:
        policy_chosen_logps: (B,) log π(y|x), summed over the completion's tokens; takes gradients.
        policy_rejected_logps: (B,) likewise.
        ref_chosen_logps: (B,) log π_ref(y|x).
        ref_rejected_logps: (B,) likewise.
        chosen_lengths: (B,) completion tokens; of use to `sigmoid_norm` and `ipo`.
        rejected_lengths: (B,) likewise.
        flip_rates: (B,) ε of each pair; of use to `robust`.
        weights: (B,) weight of each pair.
        beta: strength of the restraint to the reference policy.
        loss_type: the variant.
        total_weight: weights of the whole batch's pairs, which the loss is divided by.

    """
    chosen = policy_chosen_logps - ref_chosen_logps
    rejected = policy_rejected_logps - ref_rejected_logps
    margins = beta * (chosen - rejected)
    normalised = beta * (chosen / chosen_lengths - rejected / rejected_lengths)
    match loss_type:
        case "sigmoid":
            losses = -functional.logsigmoid(margins)
        case "sigmoid_norm":
            losses = -functional.logsigmoid(normalised)
        case "ipo":
            losses = (normalised / beta - 1 / (2 * beta)).square()
        case "robust":
            flipped = flip_rates.clamp(max=HIGHEST_FLIP_RATE)
            correction = flipped / (1 - 2 * flipped)
            bound = (9 / correction - 1).log()
            bounded = margins.clamp(-bound, bound)
            losses = -functional.logsigmoid(margins) - correction * bounded
    everything = torch.ones_like(margins, dtype=torch.bool)
    metrics = {
        "dpo_margin": mean_over(margins, everything),
        "dpo_accuracy": mean_over((margins > 0).to(margins.dtype), everything),
    }
    return (weights * losses).sum() / total_weight, metrics
