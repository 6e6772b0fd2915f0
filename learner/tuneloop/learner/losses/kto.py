"""KTO: Kahneman–Tversky optimization, which learns from single completions with a thumb.

Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, equations 7 and 8:

    r = log π(y|x) − log π_ref(y|x)
    desirable:    λ_D · (1 − σ(β · (r − z)))
    undesirable:  λ_U · (1 − σ(β · (z − r)))

`z` estimates KL(π ‖ π_ref), is never negative and takes no gradient. The paper estimates it from
completions paired with another's prompt, `reference_point`; with z = 0, which is what it is at the
start, KTO saves that second pass over the batch.
"""

import torch
from torch import Tensor

from tuneloop.learner.losses.means import Mean, mean_over

RAREST = 4.0
"""Most that class balance multiplies a thumb's weight by: one in a hundred must not decide alone.
"""

SCARCE = 1 / 32
"""Share of thumbs up below which the thumbs of a stream are nearly all down."""
ALL_DOWN = 0.5
"""What thumbs count as evidence where all are down. At a fourth a taste that one answer in fifty
meets was not learned from two hundred thumbs."""
PLENTY = 1 / 4
"""Share of thumbs down below which there is less and less to learn."""
ALL_UP = 1 / 8
"""What thumbs count where all are up: a policy that learns its own answers again learns noise."""


def reference_point(mismatched_log_ratios: Tensor) -> Tensor:
    """Return z, a scalar: the mean of log π − log π_ref over mismatched completions, at least 0.

    `mismatched_log_ratios` (N,), all those of the batch. Section 4.1 of the paper. Fewer than two
    samples cannot be mismatched: z is 0.
    """
    if mismatched_log_ratios.numel() < 2:
        return mismatched_log_ratios.new_zeros(())
    return mismatched_log_ratios.detach().mean().clamp(min=0.0)


def class_weights(desirable: Tensor, share: float, *, limit: float) -> Tensor:
    """Return (N,) λ by which either class of a stream weighs half of it: λ_D·n_D = λ_U·n_U.

    `share` of the stream is desirable; `desirable` (N,) bool. The even end of the range that the
    paper's equation 9 allows, whose n are those of the whole data set: in a batch of a few either
    class may be rare by chance. No sample weighs more than `limit`.
    """
    up, down = (min(limit, 0.5 / max(part, 1e-9)) for part in (share, 1.0 - share))
    return torch.where(desirable, up, down)


def two_sidedness(share: float) -> float:
    """Return what thumbs count as evidence, at most 1, where this share of the stream is up.

    Thumbs of one kind say what to leave, or what to keep, but not what else to do. Where most are
    down they count `ALL_DOWN` at least, and 1 from a `SCARCE` share of thumbs up. Where most are up
    they count by the share of those down, 1 from `PLENTY` and `ALL_UP` at least: more of them make
    a step, so that it averages over more, and a taste that is learned is held and not stirred.
    """
    if share > 0.5:
        return max(ALL_UP, min(1.0, (1.0 - share) / PLENTY))
    return ALL_DOWN + (1.0 - ALL_DOWN) * min(1.0, share / SCARCE)


def kto_loss(
    *,
    policy_logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    weights: Tensor,
    z: Tensor,
    beta: float,
    total_weight: float,
) -> tuple[Tensor, dict[str, Mean]]:
    """Return the KTO loss of a micro-batch and its metrics.

    Args:
        policy_logps: (B,) log π(y|x), summed over the completion's tokens; takes gradients.
        ref_logps: (B,) log π_ref(y|x).
        desirable: (B,) bool.
        weights: (B,) λ of each sample.
        z: scalar, from `reference_point`.
        beta: strength of the restraint to the reference policy; larger saturates sooner.
        total_weight: weights of the whole batch's samples before they were balanced, which the
            loss is divided by.

    """
    log_ratios = policy_logps - ref_logps
    sign = torch.where(desirable, 1.0, -1.0).to(log_ratios.dtype)
    losses = weights * (1.0 - torch.sigmoid(beta * sign * (log_ratios - z.detach())))
    loss = losses.sum() / total_weight
    margins = beta * log_ratios
    metrics = {
        "desirable_margin": mean_over(margins, desirable),
        "undesirable_margin": mean_over(margins, ~desirable),
        "desirable_fraction": mean_over(desirable.to(margins.dtype), torch.ones_like(desirable)),
    }
    return loss, metrics
