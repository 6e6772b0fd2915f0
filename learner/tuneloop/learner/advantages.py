"""From rewards to advantages: pure functions on padded tensors.

Shapes: (B, C) is completions by completion tokens, right-padded; `loss_mask` (B, C) is true on
tokens that were sampled. Log-probs are natural; nothing here takes a gradient.
"""

import torch
from torch import Tensor


def kl_penalized_rewards(
    *,
    scores: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    loss_mask: Tensor,
    kl_coef: float,
) -> Tensor:
    """Return the reward of each token (B, C): −kl_coef·(log π_old − log π_ref), score at the end.

    Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, equation 2, with Schulman's k1 estimator
    by token. `scores` (B,) is put on the last completion token, which is where it was earned.
    """
    rewards = -kl_coef * (old_logprobs - ref_logprobs)
    rewards = torch.where(loss_mask, rewards, torch.zeros_like(rewards))
    last = loss_mask.sum(-1) - 1
    rewards[torch.arange(rewards.shape[0], device=rewards.device), last] += scores
    return rewards


def generalized_advantages(
    *, rewards: Tensor, values: Tensor, loss_mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns, both (B, C).

    Schulman et al. 2015, https://arxiv.org/abs/1506.02438, equations 11 to 16:
    δ_t = r_t + γ·V_{t+1} − V_t, A_t = δ_t + γλ·A_{t+1}, R_t = A_t + V_t; V is 0 past the end.
    The returns belong to the advantages as they are here: whiten afterwards.
    """
    values = torch.where(loss_mask, values, torch.zeros_like(values))
    advantages = torch.zeros_like(values)
    next_advantage = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        alive = loss_mask[:, t].to(values.dtype)
        next_advantage = (delta + gamma * lam * next_advantage) * alive
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values


def whiten(values: Tensor, loss_mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Return `values` (B, C) with unit variance over unmasked tokens, and mean 0 if shifted."""
    chosen = values[loss_mask]
    if chosen.numel() < 2:
        return values
    mean = chosen.mean()
    whitened = (values - mean) * torch.rsqrt(chosen.var(unbiased=False) + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(loss_mask, whitened, torch.zeros_like(whitened))
