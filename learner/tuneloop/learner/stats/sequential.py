"""Is one arm better than the other? A test that stays valid however often one looks.

Two arms run side by side. Their observations, each in [0, 1], are cut into blocks in the order in
which they came, and a block gives one difference, canary minus stable (`differences`). Whatever
both arms share at the time, such as the hour of the day, cancels out, and given all that came
before its mean is the arms' difference.

The mean of the differences is then estimated by betting (Waudby-Smith and Ramdas, "Estimating means
of bounded random variables by betting", Journal of the Royal Statistical Society B 86, 2024,
arXiv:2010.09686). The claim that the mean is m offers fair bets on it; a bettor against it, with a
stake fixed before each observation, has after t of them the capital

    K_t(m) = Π_{i ≤ t} (1 + λ_i(m) · (x_i − m)),   0 ≤ λ_i(m) ≤ c / m

(their capital process, with bets on one side only, as the K⁺ of their hedged capital, theorem 3).
Under the claim, and under any that the mean is lower, K_t(m) is a nonnegative supermartingale that
begins at 1, so by Ville's inequality P(K_t(m) ≥ 1/α at any t) ≤ α: not at a planned end, but at
every look. All claims that were refuted in this way bound the mean from below; bets on 1 − x bound
it from above. No claim is made of the distribution, and nothing is asymptotic.

The stakes are those of their approximate GRAPA: λ_i(m) = (μ̂ − m) / (σ̂² + (μ̂ − m)²) cut to the
range above, with mean and variance of the observations before i, begun with one imagined
observation of mean 1/2 and variance 1/4. Any other stake fixed in advance would be as valid.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Numbers: TypeAlias = npt.NDArray[np.float64]

STAKE = 0.75
"""c: the most that one observation may cost, as a share of the capital."""
CLAIMS = np.linspace(-1.0, 1.0, 201)
"""The differences that are tested; a bound is one of them, rounded to the safe side."""
ROWS = 2048
"""Observations per vectorized operation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The outcome of one user or one request."""

    canary: bool
    """Which arm."""
    value: float
    """From 0 to 1."""


def differences(observations: Iterable[Observation]) -> list[float]:
    """Return canary minus stable, from -1 to 1, for each block of observations.

    A block ends with the observation that completes it: the first of whichever arm it lacked. That
    depends on which arm came, not on the values.
    """
    found = []
    totals, counts = [0.0, 0.0], [0, 0]
    for observation in observations:
        totals[observation.canary] += observation.value
        counts[observation.canary] += 1
        if all(counts):
            found.append(totals[1] / counts[1] - totals[0] / counts[0])
            totals, counts = [0.0, 0.0], [0, 0]
    return found


def lower_bound(values: Sequence[float], alpha: float) -> float:
    """Return a lower bound of the mean difference, wrong with chance `alpha` over all looks.

    -1 if nothing can be said.
    """
    refuted = log_capital(values, CLAIMS) >= np.log(1 / alpha)
    # Claims are refuted from the lowest up; refuted ones beyond a gap do not count.
    first_left = int(np.argmin(refuted)) if not refuted.all() else len(CLAIMS)
    return float(CLAIMS[max(0, first_left - 1)])


def upper_bound(values: Sequence[float], alpha: float) -> float:
    """Return an upper bound likewise; 1 if nothing can be said."""
    return -lower_bound([-value for value in values], alpha)


def log_capital(values: Sequence[float], claims: Numbers) -> Numbers:
    """Return the log of the capital won against each claim by betting on a higher mean."""
    x = (np.asarray(values, dtype=np.float64) + 1) / 2
    m = (claims + 1) / 2
    mean, variance = _known_before(x)
    total = np.zeros_like(m)
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        gap = mean[rows, None] - m
        # At m = 0 there is nothing to lose, and no limit.
        limit = STAKE / np.maximum(m, 1e-12)
        stake = np.clip(gap / (variance[rows, None] + gap * gap), 0.0, limit)
        total += np.log1p(stake * (x[rows, None] - m)).sum(axis=0)
    return total


def _known_before(x: Numbers) -> tuple[Numbers, Numbers]:
    """Return mean and variance of what came before each observation."""
    count = np.arange(2, len(x) + 2)
    mean = (0.5 + np.cumsum(x)) / count
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / count
    return np.append(0.5, mean)[: len(x)], np.append(0.25, variance)[: len(x)]
