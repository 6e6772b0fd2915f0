"""GRPO and RLOO: policy gradients whose baseline comes from the other completions of the prompt.

* GRPO: Shao et al. 2024, https://arxiv.org/abs/2402.03300, equation 3, with what came after:
  a higher clip above and the mean over all tokens of the batch, Yu et al. 2025 (DAPO),
  https://arxiv.org/abs/2503.14476, sections 3.1 and 3.3; dual clip as in PPO.
* RLOO: Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740: the completion is one
  action, so the ratio is that of whole sequences; clipped as PPO's for batches used more than once.

The advantages come from `tuneloop.learner.trainer.advantages`. The three policies are those of PPO.
"""

import torch
from torch import Tensor

from tuneloop.learner.losses.kl import KlEstimator, kl_by_token
from tuneloop.learner.losses.means import Mean
from tuneloop.learner.losses.ppo import ppo_policy_loss


def grpo_loss(
    *,
    policy_logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    loss_mask: Tensor,
    epsilon: float,
    epsilon_high: float,
    dual_clip: float | None,
    beta: float,
    estimator: KlEstimator,
    total_weight: float,
) -> tuple[Tensor, dict[str, Mean]]:
    """Return the GRPO loss of a micro-batch and its metrics.

    Args:
        policy_logprobs: (B, C) log-prob of each completion token; takes gradients.
        old_logprobs: (B, C) the same at the start of the step.
        ref_logprobs: (B, C) the reference policy's; None where `beta` is 0.
        advantages: (B,) of each completion.
        weights: (B, C) importance weight times sample weight.
        loss_mask: (B, C) bool, true on completion tokens.
        epsilon: the ratio may gain from moving to 1 − ε and no further.
        epsilon_high: the same above: 1 + ε_high.
        dual_clip: c > 1; with a negative advantage A the loss is at most −c·A. None is no bound.
        beta: weight of the KL divergence to the reference policy.
        estimator: of that divergence.
        total_weight: sample weights of the whole batch's completion tokens, which the loss is
            divided by.

    """
    loss, metrics = ppo_policy_loss(
        policy_logprobs=policy_logprobs,
        old_logprobs=old_logprobs,
        advantages=advantages.unsqueeze(-1).expand_as(policy_logprobs),
        weights=weights,
        loss_mask=loss_mask,
        clip=epsilon,
        clip_high=epsilon_high,
        dual_clip=dual_clip,
        total_weight=total_weight,
    )
    if ref_logprobs is None or beta == 0:
        return loss, metrics
    by_token = kl_by_token(
        policy_logprobs=policy_logprobs,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        estimator=estimator,
    )
    restraint = torch.where(loss_mask, weights * by_token, 0.0).sum() / total_weight
    return loss + beta * restraint, metrics


def rloo_loss(
    *,
    policy_logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    weights: Tensor,
    epsilon: float,
    epsilon_high: float,
    dual_clip: float | None,
    total_weight: float,
) -> tuple[Tensor, dict[str, Mean]]:
    """Return the RLOO loss of a micro-batch and its metrics.

    Args:
        policy_logps: (B,) log π(y|x), summed over the completion's tokens; takes gradients.
        old_logps: (B,) the same at the start of the step.
        advantages: (B,), the KL to the reference policy already in the reward.
        weights: (B,) importance weight of the sequence times sample weight.
        epsilon: as in `grpo_loss`.
        epsilon_high: as in `grpo_loss`.
        dual_clip: as in `grpo_loss`.
        total_weight: sample weights of the whole batch, which the loss is divided by.

    """
    return ppo_policy_loss(
        policy_logprobs=policy_logps.unsqueeze(-1),
        old_logprobs=old_logps.unsqueeze(-1),
        advantages=advantages.unsqueeze(-1),
        weights=weights.unsqueeze(-1),
        loss_mask=torch.ones_like(policy_logps, dtype=torch.bool).unsqueeze(-1),
        clip=epsilon,
        clip_high=epsilon_high,
        dual_clip=dual_clip,
        total_weight=total_weight,
    )
