"""Scores of several scorers on one scale, while the scorers drift.

A reward model's scores are log-odds of any range and change with every version; a function's range
is its author's choice. Added up raw, the widest range wins. Normalised, each score counts in
standard deviations from its scorer's running mean, so that the weights have their effect.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW = 1000.0
"""Scores after which older ones fade; the statistics follow a drift within about as many."""
CARRIED = 64.0
"""The weight of all scores of earlier versions once the scorer has a new version."""


@dataclass(slots=True)
class RunningStatistics:
    """Mean and variance with exponential decay.

    Welford's update (1962) with the count held at `WINDOW`: exact until then, an exponential
    moving average of that time constant afterwards.
    """

    count: float = 0.0
    mean: float = 0.0
    variance: float = 0.0
    """Of the population, not the sample."""

    def add(self, score: float) -> None:
        """Add one finite score."""
        self.count = min(self.count + 1.0, WINDOW)
        difference = score - self.mean
        self.mean += difference / self.count
        self.variance += (difference * (score - self.mean) - self.variance) / self.count

    def fade(self) -> None:
        """Let the scores so far count for `CARRIED` scores at most."""
        self.count = min(self.count, CARRIED)

    def normalized(self, score: float) -> float:
        """Return standard deviations from the mean; 0 while all scores were the same."""
        deviation = math.sqrt(self.variance)
        # Rounding leaves a tiny spread where there is none.
        if deviation <= 1e-9 * max(1.0, abs(self.mean)):
            return 0.0
        return (score - self.mean) / deviation


class Normalizer:
    """The statistics of each scorer; not thread-safe."""

    def __init__(self) -> None:
        self._statistics: dict[str, RunningStatistics] = {}
        self._versions: dict[str, int] = {}

    def learn(self, scorer: str, version: int, scores: Sequence[float | None]) -> None:
        """Add a batch of scores; with a new version of a scorer the older ones fade."""
        statistics = self._statistics.setdefault(scorer, RunningStatistics())
        if self._versions.setdefault(scorer, version) != version:
            self._versions[scorer] = version
            statistics.fade()
        for score in scores:
            if score is not None:
                statistics.add(score)

    def normalized(self, scorer: str, score: float) -> float:
        """Return the score on the common scale; unchanged for a scorer without statistics."""
        statistics = self._statistics.get(scorer)
        return score if statistics is None else statistics.normalized(score)
