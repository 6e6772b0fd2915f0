"""Intervals for means and for rates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def mean_of(values: Sequence[float], seed: int = 0) -> Estimate:
    """Return the mean of independent values with its bootstrap percentile interval (Efron 1979)."""
    array = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    # One resample at a time: with many prompts all of them would fill the memory.
    means = [
        float(array[generator.integers(0, len(array), len(array))].mean()) for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(value=float(array.mean()), low=float(low), high=float(high))


def rate_of(wins: float, trials: int) -> Estimate:
    """Return a rate with its Wilson score interval (Wilson 1927); a tie is half a win."""
    rate = wins / trials
    spread = Z95**2 / trials
    middle = (rate + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials)) / (1 + spread)
    return Estimate(value=rate, low=max(0.0, middle - half), high=min(1.0, middle + half))
