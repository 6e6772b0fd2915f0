"""From rewards to advantages: pure functions on padded tensors.

Shapes: (B, C) is completions by completion tokens, right-padded; `loss_mask` (B, C) is true on
tokens that were sampled; (G,) is the completions of one prompt. Log-probs are natural; nothing here
takes a gradient.
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
    """Return `values` (…) with unit variance over unmasked tokens, and mean 0 if shifted."""
    count = loss_mask.sum()
    # Without a count that is known here: a GPU would have to be waited for.
    mean = torch.where(loss_mask, values, 0.0).sum() / count
    deviations = torch.where(loss_mask, values - mean, 0.0)
    whitened = deviations * torch.rsqrt(deviations.square().sum() / count + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(count > 1, torch.where(loss_mask, whitened, 0.0), values)


SPREAD_FLOOR = 1e-4
"""Added to a group's standard deviation before rewards are divided by it."""


def group_advantages(
    rewards: Tensor,
    *,
    baseline: float | None = None,
    scale: float | None = None,
    by_spread: bool = True,
) -> Tensor:
    """Return the advantages (G,) of a group's completions over their mean, or over `baseline`.

    Shao et al. 2024 (GRPO), https://arxiv.org/abs/2402.03300, section 4.1.2: divided by the group's
    standard deviation (n − 1 in its denominator). Without `by_spread`: Liu et al. 2025 (Dr. GRPO),
    https://arxiv.org/abs/2503.20783. Rewards over a `baseline` from outside are
    divided by `scale` from outside, if there is one. A reward of NaN could not be given: its
    advantage is 0, and the others' are as if it were not there.
    """
    given = rewards[~rewards.isnan()]
    if baseline is None and given.numel() < 2:
        return torch.zeros_like(rewards)
    advantages = rewards - (given.mean() if baseline is None else baseline)
    if by_spread and scale is not None:
        advantages = advantages / (scale + SPREAD_FLOOR)
    elif by_spread and baseline is None:
        advantages = advantages / (given.std() + SPREAD_FLOOR)
    return advantages.nan_to_num(nan=0.0)


def leave_one_out_advantages(rewards: Tensor, *, baseline: float | None = None) -> Tensor:
    """Return the advantages (G,) of completions over the mean of the others, or over `baseline`.

    Kool et al. 2019, https://openreview.net/forum?id=r1lgTGL5DE; Ahmadian et al. 2024,
    https://arxiv.org/abs/2402.14740. NaN as in `group_advantages`.
    """
    given = rewards[~rewards.isnan()]
    if baseline is not None:
        return (rewards - baseline).nan_to_num(nan=0.0)
    if given.numel() < 2:
        return torch.zeros_like(rewards)
    others = (given.sum() - rewards) / (given.numel() - 1)
    return (rewards - others).nan_to_num(nan=0.0)
