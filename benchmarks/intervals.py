"""Estimates from pairs of runs, with 95 % intervals by the bootstrap over the pairs."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 1000

Pair = tuple[Sequence[float], Sequence[float]]
"""What was seen in two runs that followed each other: ours and the other's."""

Estimate = dict[str, float]
"""`value`, and `low` and `high`: the ends of its interval."""


def estimate(items: Sequence[Any], statistic: Callable[[list[Any]], float]) -> Estimate:
    """`statistic` of the items, and the middle 95 % of it when they are drawn anew."""
    chance = np.random.default_rng(0)
    draws = chance.integers(len(items), size=(RESAMPLES, len(items)))
    low, high = np.quantile([statistic([items[i] for i in draw]) for draw in draws], (0.025, 0.975))
    return {"value": float(statistic(list(items))), "low": float(low), "high": float(high)}


def median(values: Sequence[float]) -> Estimate:
    """Their median."""
    return estimate(values, lambda drawn: float(np.median(drawn)))


def added(pairs: Sequence[Pair], share: float) -> Estimate:
    """By how much our quantile is above theirs, over all pairs."""
    arrays = [(np.asarray(ours), np.asarray(theirs)) for ours, theirs in pairs]

    def difference(drawn: list[Any]) -> float:
        ours, theirs = (np.concatenate(side) for side in zip(*drawn, strict=True))
        return float(np.quantile(ours, share) - np.quantile(theirs, share))

    return estimate(arrays, difference)


def quantile_ratio(pairs: Sequence[Pair], share: float) -> Estimate:
    """Our quantile over theirs, over all pairs."""

    def ratio(drawn: list[Any]) -> float:
        ours, theirs = (np.concatenate(side) for side in zip(*drawn, strict=True))
        return float(np.quantile(ours, share) / np.quantile(theirs, share))

    return estimate([(np.asarray(ours), np.asarray(theirs)) for ours, theirs in pairs], ratio)
