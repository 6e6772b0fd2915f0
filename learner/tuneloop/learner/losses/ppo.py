"""PPO: proximal policy optimization on tokens, with a value loss and off-policy correction.

* Clipped objective: Schulman et al. 2017, https://arxiv.org/abs/1707.06347, equation 7.
* Dual clip, for negative advantages: Ye et al. 2020, https://arxiv.org/abs/1912.09729, equation 5.
* Clipped value loss: Schulman's baselines, ppo2; Engstrom et al. 2020,
  https://arxiv.org/abs/2005.12729, section 3.
* Importance weights between the sampler and the policy that the clip is centred on:
  Hilton et al. 2022, https://arxiv.org/abs/2110.00641, equation 3; truncated as in
  Espeholt et al. 2018, https://arxiv.org/abs/1802.01561; or of whole sequences, those above the cap
  left out, as TRL's `sequence_mask`.
* Off-policy sequences with a negative advantage: DeepSeek-AI 2025 (DeepSeek-V3.2),
  https://arxiv.org/abs/2512.02556, section 3.1, off-policy sequence masking.

Three policies meet here: `generation` sampled the tokens, `old` is the learner's at the start of
the step (the clip's centre), `policy` is the one that moves.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from tuneloop.learner.losses.kl import LOG_RATIO_LIMIT
from tuneloop.learner.losses.means import Mean, mean_over

ImportanceSampling = Literal["token_truncate", "sequence_mask"]
"""TRL's names of two ways to weigh what another policy sampled."""


def importance_weights(
    *,
    old_logprobs: Tensor,
    generation_logprobs: Tensor,
    loss_mask: Tensor,
    cap: float,
    kind: ImportanceSampling = "token_truncate",
) -> Tensor:
    """Return what corrects for the sampler, (B, C), without gradient; 1 where masked.

    `token_truncate`: min(ρ_t, cap), ρ_t = π_old / π_generation of the token. `sequence_mask`: the
    product of a sequence's ρ_t on each of its tokens, 0 where it is above the cap.
    """
    log_ratio = torch.where(loss_mask, old_logprobs - generation_logprobs, 0.0)
    if kind == "sequence_mask":
        log_ratio = log_ratio.sum(-1, keepdim=True).expand_as(log_ratio)
    ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp().detach()
    weights = ratio.clamp(max=cap) if kind == "token_truncate" else ratio * (ratio <= cap)
    return torch.where(loss_mask, weights, torch.ones_like(weights))


def is_far_off_policy(
    *, old_logprobs: Tensor, generation_logprobs: Tensor, loss_mask: Tensor, threshold: float
) -> Tensor:
    """Return (B,) bool: sequences with mean log π_generation − log π_old over `threshold` nats.

    The policy has come to find them unlikely: where their advantage is negative as well, DeepSeek
    V3.2 learns nothing more from them.
    """
    log_ratio = torch.where(loss_mask, generation_logprobs - old_logprobs, 0.0)
    return log_ratio.sum(-1) / loss_mask.sum(-1).clamp(min=1) > threshold


def sequence_gate(
    *, old_logprobs: Tensor, generation_logprobs: Tensor, loss_mask: Tensor, limit: float
) -> Tensor:
    """Return (B,) bool: sequences whose geometric mean ratio lies in [1/limit, limit].

    The mean, since a sum over tokens grows with the length. A sequence beyond it was sampled by
    what is by now another policy (or with a filter the log-probs do not tell of).
    """
    log_ratio = torch.where(loss_mask, old_logprobs - generation_logprobs, 0.0)
    mean_log_ratio = log_ratio.sum(-1) / loss_mask.sum(-1).clamp(min=1)
    return mean_log_ratio.abs() <= math.log(limit)


def ppo_policy_loss(
    *,
    policy_logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    loss_mask: Tensor,
    clip: float,
    clip_high: float | None = None,
    dual_clip: float | None,
    total_weight: float,
) -> tuple[Tensor, dict[str, Mean]]:
    """Return the clipped policy loss of a micro-batch and its metrics.

    Args:
        policy_logprobs: (B, C) log-prob of each completion token; takes gradients.
        old_logprobs: (B, C) the same at the start of the step.
        advantages: (B, C).
        weights: (B, C) importance weight times sample weight.
        loss_mask: (B, C) bool, true on completion tokens.
        clip: ε; the ratio may gain from moving to 1 ± ε and no further.
        clip_high: another ε above 1, if given.
        dual_clip: c > 1; with a negative advantage A the loss is at most −c·A. None is no bound.
        total_weight: sample weights of the whole batch's completion tokens, which the loss is
            divided by.

    """
    log_ratio = (policy_logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    highest = 1.0 + (clip if clip_high is None else clip_high)
    clipped = -advantages * ratio.clamp(1.0 - clip, highest)
    losses = torch.maximum(unclipped, clipped)
    if dual_clip is not None:
        bounded = torch.minimum(losses, -advantages * dual_clip)
        losses = torch.where(advantages < 0, bounded, losses)
    loss = torch.where(loss_mask, losses * weights, 0.0).sum() / total_weight
    metrics = {
        "clip_fraction": mean_over((clipped > unclipped).to(ratio.dtype), loss_mask),
        "importance_ratio": mean_over(ratio, loss_mask),
    }
    return loss, metrics


def value_loss(
    *,
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    loss_mask: Tensor,
    value_clip: float,
    total_tokens: int,
) -> tuple[Tensor, dict[str, Mean]]:
    """Return ½·max((v − R)², (clip(v, v_old ± value_clip) − R)²) and its metrics.

    All tensors (B, C); `values` takes gradients. Divided by `total_tokens`, those of the batch.
    """
    clipped = old_values + (values - old_values).clamp(-value_clip, value_clip)
    losses = 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())
    loss = torch.where(loss_mask, losses, 0.0).sum() / total_tokens
    metrics = {
        "value_loss": mean_over(losses, loss_mask),
        "value": mean_over(values, loss_mask),
        "returns": mean_over(returns, loss_mask),
    }
    return loss, metrics
