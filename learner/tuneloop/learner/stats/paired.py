"""A paired comparison: how much one version's figures differ from another's on the same prompts.

The interval is Student's t for the mean of the differences, exact for normal differences and
conservative enough for a dozen prompts, where a bootstrap is too narrow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from tuneloop.learner.stats.intervals import mean_and_error


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """Candidate minus stable, over pairs."""

    pairs: int
    difference: float
    low: float
    high: float
    confidence: float


def paired_difference(
    candidate: Sequence[float], stable: Sequence[float], confidence: float
) -> PairedDifference | None:
    """Return the mean difference of the pairs with its interval; None for fewer than two."""
    differences = [one - other for one, other in zip(candidate, stable, strict=True)]
    count = len(differences)
    if count < 2:
        return None
    mean, error = mean_and_error(differences)
    assert error is not None, "there are two of them"
    return difference_with_error(mean, error, count, confidence)


def difference_with_error(
    mean: float, error: float, pairs: int, confidence: float
) -> PairedDifference:
    """Return a mean difference with its interval, from its standard error over the pairs."""
    margin = t_quantile((1 + confidence) / 2, pairs - 1) * error
    return PairedDifference(
        pairs=pairs,
        difference=mean,
        low=mean - margin,
        high=mean + margin,
        confidence=confidence,
    )


def spent_alpha(total: float, number: int) -> float:
    """Return the part of `total` that test `number` (1, 2, …) may spend: total · 6 / (π²·number²).

    All parts add up to `total` (Euler's solution of the Basel problem), so the chance that any of
    the tests, however many there will be, is wrong about no difference is at most `total`.
    """
    return total * 6 / (math.pi * number) ** 2


@lru_cache(maxsize=256)
def t_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t at `probability`, 0.5 to 1, by bisection."""
    low, high = 0.0, 1.0
    while t_within(high, freedom) < 2 * probability - 1:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        if t_within(middle, freedom) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def t_within(bound: float, freedom: int) -> float:
    """Return P(|t| < bound), by the finite series for whole degrees of freedom.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan(bound / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(3 if odd else 2, freedom + 1, 2):
        total += term
        term *= cosine * cosine * (k - 1) / k
    if odd:
        return 2 / math.pi * (angle + sine * total)
    return sine * total
