"""Means and rates with their intervals."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

ERRORS_95 = 1.96
"""Standard errors to either side for a 95 % interval."""
RESAMPLES = 2000
Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Some values: enough for their mean and its standard error."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Sum up these values."""
        known = list(values)
        return cls(
            count=len(known), total=math.fsum(known), squares=math.fsum(v * v for v in known)
        )

    def __add__(self, other: Self) -> Self:
        """Sum up the values of both."""
        return type(self)(
            count=self.count + other.count,
            total=self.total + other.total,
            squares=self.squares + other.squares,
        )

    def with_one_of_each(self) -> Self:
        """Return booleans with a 0 and a 1 added, so that a few equal ones are not certain."""
        return self + self.of([0.0, 1.0]) if self.count else self

    @property
    def mean(self) -> float:
        """The mean of one value or more."""
        return self.total / self.count

    @property
    def error(self) -> float:
        """The standard error of the mean of two values or more."""
        variance = max(0.0, self.squares - self.count * self.mean**2) / (self.count - 1)
        return math.sqrt(variance / self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanWithMargin:
    """A mean and half the width of its 95 % interval, which needs two values."""

    value: float
    margin: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Return the mean of one value or more."""
        mean, error = mean_and_error(values)
        return cls(value=mean, margin=None if error is None else ERRORS_95 * error)

    @classmethod
    def of_sums(cls, sums: Sums) -> Self:
        """Return the mean of one value or more of which only the sums are known."""
        margin = None if sums.count < 2 else ERRORS_95 * sums.error
        return cls(value=sums.mean, margin=margin)


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean of some values and its standard error, which needs two of them."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(variance / count)


def standard_deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of two values or more; 1 if they are all the same, or fewer."""
    return (statistics.stdev(values) if len(values) > 1 else 0.0) or 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def mean_of(values: Sequence[float], seed: int = 0) -> Estimate:
    """Return the mean of independent values with its bootstrap percentile interval (Efron 1979)."""
    import numpy as np

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
