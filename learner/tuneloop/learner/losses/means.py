"""Means that add up: a metric is kept as a sum and a count until the step is over."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mean:
    """`total / count`; micro-batches of any size then average exactly as one batch would."""

    total: Tensor
    """Scalar, detached."""
    count: Tensor
    """Scalar; 0 when there was nothing to measure."""


def total_of(weights: Iterable[float]) -> float:
    """Return what a loss is divided by: the weights of its whole batch; 1 where all of them are 0.

    So a batch moves the model as far whatever its samples weigh: a weight says what a sample
    counts beside others.
    """
    return math.fsum(weights) or 1.0


def mean_over(values: Tensor, mask: Tensor) -> Mean:
    """Return the mean of `values` where `mask` is true; both of the same shape."""
    chosen = mask.to(torch.float64)
    kept = torch.where(mask, values.detach().to(torch.float64), torch.zeros_like(chosen))
    return Mean(kept.sum(), chosen.sum())


def merge(parts: Iterable[Mapping[str, Mean]]) -> dict[str, float]:
    """Add up the means of micro-batches; those that measured nothing are left out."""
    named = [(name, mean) for part in parts for name, mean in part.items()]
    numbers = iter(read_numbers([n for _, mean in named for n in (mean.total, mean.count)]))
    totals: dict[str, tuple[float, float]] = {}
    for name, _ in named:
        total, count = totals.get(name, (0.0, 0.0))
        totals[name] = (total + next(numbers), count + next(numbers))
    return {name: total / count for name, (total, count) in totals.items() if count > 0}


def read_numbers(scalars: Sequence[Tensor]) -> list[float]:
    """Return the values of scalars, read at once: each read waits for all that a GPU has to do."""
    devices = {scalar.device for scalar in scalars}
    values: dict[int, float] = {}
    for device in devices:
        places = [place for place, scalar in enumerate(scalars) if scalar.device == device]
        together = torch.stack([scalars[place].detach().double() for place in places])
        values.update(zip(places, together.tolist(), strict=True))
    return [values[place] for place in range(len(scalars))]


def log_ratio_kl(policy_logprobs: Tensor, ref_logprobs: Tensor, loss_mask: Tensor) -> Mean:
    """Return the KL to the reference policy, from l = log π − log π_ref by token, averaged.

    Schulman's k3, e^(−l) − 1 + l, where l is positive, and his k2, ½l², where it is negative
    (http://joschu.net/blog/kl-approx.html). Neither is ever negative. On answers of the policy's
    own, l is mostly positive; there k3 is close to the KL divergence, and k2 twice as large once a
    taste is learned. On answers that it was pushed away from k3 would explode. All arguments
    (B, C); nats per token.
    """
    log_ratio = (policy_logprobs.detach() - ref_logprobs).clamp(-20.0, 20.0)
    k3 = torch.expm1(-log_ratio) + log_ratio
    return mean_over(torch.where(log_ratio > 0, k3, 0.5 * log_ratio.square()), loss_mask)
