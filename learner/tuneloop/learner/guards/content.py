"""Which judgements others' judgements of similar answers lead one to expect.

A logistic regression on features of the answers, as in learning from crowds (Raykar et al. 2010,
https://jmlr.org/papers/v11/raykar10a.html). It is fitted to what some users say and asked about
what the others judged, so nobody is measured by their own word. Linear and on few numbers, it knows
a taste after some dozens of judgements, where a reward model takes hundreds. A taste it cannot
express looks to it like none.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

PARTS = 8
"""Judgements are expected of each eighth of the users from those of the others."""
PENALTY = 0.3
"""Of the squared weights; features have unit variance, divided by their number."""
LEAST_OF_EACH = 8
"""Judgements of either kind below which nothing is said about how well they are expected."""
MOST_LOG_ODDS = 4.0
STEPS = 8
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class JudgedAnswers:
    """N judged things; `features` are (N, D), of pairs the first answer's minus the second's."""

    features: Floats
    parts: npt.NDArray[np.int64]
    """Which part each belongs to, (N,)."""
    has_base_rate: bool
    """Whether "up" is more or less likely by itself; of pairs neither order is."""

    @classmethod
    def of(
        cls, features: Sequence[Sequence[float]], raters: Sequence[str], *, has_base_rate: bool
    ) -> "JudgedAnswers":
        """Scale features, and put raters into parts; with fewer raters than parts, things."""
        known = np.asarray(features, dtype=np.float64)
        if has_base_rate:
            known = known - known.mean(0)
        deviation = np.sqrt((known**2).mean(0)) + 1e-9
        by_rater = len(set(raters)) >= PARTS
        names = raters if by_rater else [str(number) for number in range(len(raters))]
        return cls(
            features=known / deviation / known.shape[1] ** 0.5,
            parts=np.array([zlib.crc32(name.encode()) % PARTS for name in names]),
            has_base_rate=has_base_rate,
        )

    def expected(self, truths: Floats, trust: Floats | None = None) -> Floats:
        """Return the log odds, (N,), of "up" where the other parts' `truths`, 0 to 1, are known.

        `trust`, (N,), is what each truth counts; 1 where it is not given.
        """
        counts = np.ones(len(truths)) if trust is None else trust
        columns = self.features
        if self.has_base_rate:
            columns = np.c_[columns, np.ones(len(columns))]
        penalties = np.full(columns.shape[1], PENALTY)
        if self.has_base_rate:
            penalties[-1] = 1e-3
        log_odds = np.zeros(len(truths))
        for part in np.unique(self.parts):
            rest = self.parts != part
            weights = fit(columns[rest], truths[rest], counts[rest], penalties)
            log_odds[~rest] = columns[~rest] @ weights
        return np.clip(log_odds, -MOST_LOG_ODDS, MOST_LOG_ODDS)


def fit(columns: Floats, truths: Floats, counts: Floats, penalties: Floats) -> Floats:
    """Return the weights of a logistic regression, (D,), by Newton's method.

    `columns` are (N, D); `truths`, (N,), probabilities that count `counts`; `penalties`, (D,), of
    the squares.
    """
    weights = np.zeros(columns.shape[1])
    for _ in range(STEPS):
        chances = 1 / (1 + np.exp(-np.clip(columns @ weights, -30, 30)))
        slope = columns.T @ (counts * (chances - truths)) + penalties * weights
        curvature = (columns * (counts * chances * (1 - chances))[:, None]).T @ columns
        step = np.linalg.solve(curvature + np.diag(penalties), slope)
        weights = weights - step
        if np.abs(step).max() < TOLERANCE:
            break
    return weights


def predictability(expected: Floats, said: npt.NDArray[np.bool_], trust: Floats) -> float | None:
    """Return how surely judgements are what one would expect: 1, for certain, to 0, by chance.

    `expected` are the log odds of "up"; `said` what was said; `trust` what each counts; all (N,).
    It is the area under the ROC curve less its standard error by chance (Mann and Whitney 1947),
    from one half to one. None with fewer than `LEAST_OF_EACH` of a kind.
    """
    ups, downs = trust[said].sum(), trust[~said].sum()
    if round(float(min(ups, downs)), 6) < LEAST_OF_EACH:
        return None
    ahead = expected[said][:, None] - expected[~said]
    of_pairs = trust[said][:, None] * trust[~said]
    area = float(((ahead > 0) + 0.5 * (ahead == 0)).ravel() @ of_pairs.ravel() / (ups * downs))
    error = float(np.sqrt((ups + downs + 1) / (12 * ups * downs)))
    return max(0.0, 2 * (area - error) - 1)
