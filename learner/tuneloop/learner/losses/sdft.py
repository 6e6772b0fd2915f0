"""SDFT: self-distillation from words; the policy that was shown a comment teaches the policy.

Of an answer y to x, on which somebody commented h:

    D_t = KL(π(· | x, y_<t) ‖ π_teacher(· | x, h, y_<t)),  the teacher held fixed
    loss = Σ w · mean over t of min(1, c/D_t)·D_t / Σ w

The loss of SDPO, Hübotter et al. 2026, https://arxiv.org/abs/2601.20802, with version 0 as the
teacher, as TRL has it for SDFT, Shenfeld et al. 2026, https://arxiv.org/abs/2601.19897. The
divergence is the reverse one: it takes from the policy what the teacher finds unlikely, and asks
for nothing that the policy never says.

The factor min(1, c/D_t), which takes no gradient, is ours: no token counts more than c nats, but
each keeps its direction. Where a hint says how to begin, the first token's divergence may be as
large as that of all others, and a plain clip would leave out just that one. A mean over each
answer's tokens is ours too: one comment counts as much as another, on however long an answer.
"""

import torch
from torch import Tensor

from tuneloop.learner.losses.means import Mean, mean_over


def sdft_loss(
    *,
    divergences: Tensor,
    weights: Tensor,
    loss_mask: Tensor,
    clip: float,
    total_weight: float,
) -> tuple[Tensor, dict[str, Mean]]:
    """Return the SDFT loss of a micro-batch and its metrics.

    Args:
        divergences: (B, C) D_t in nats, of the next token's whole distribution; takes gradients.
        weights: (B,) weight of each answer.
        loss_mask: (B, C) bool, true on completion tokens; each row has one at least.
        clip: c, the most nats that one token counts.
        total_weight: weights of the whole batch's answers, which the loss is divided by.

    """
    known = divergences.detach()
    factors = clip / known.clamp(min=clip)
    by_token = torch.where(loss_mask, factors * divergences, 0.0)
    losses = weights * by_token.sum(-1) / loss_mask.sum(-1)
    metrics = {
        "hint_divergence": mean_over(divergences, loss_mask),
        "hint_clipped": mean_over((known > clip).to(known.dtype), loss_mask),
    }
    return losses.sum() / total_weight, metrics
