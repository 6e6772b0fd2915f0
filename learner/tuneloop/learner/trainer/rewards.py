"""Rewards as the losses take them, and their running statistics. Standard library only."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from tuneloop.learner.samples import ScoredSample
from tuneloop.learner.trainer.settings import TrainerSettings

FLOOR = 1e-4
"""Added to a standard deviation before rewards are divided by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardStatistics:
    """Mean and variance of rewards, the newest weighing most.

    Rewards drift: the policy improves, the reward model learns, its scale changes. A reward that is
    counted before it is standardised is bounded whatever came before it: of weight 1 among a total
    of W, it is at most √(W − 1) deviations from the mean, and with batches of up to n rewards W is
    at most n/(1 − decayⁿ).
    """

    weight: float = 0.0
    """Of all rewards seen, each multiplied by the decay for each that came later."""
    mean: float = 0.0
    variance: float = 0.0

    def updated(self, rewards: Iterable[float], decay: float) -> Self:
        """Return the statistics with a batch of finite rewards, whose order does not matter."""
        batch = list(rewards)
        if not batch:
            return self
        faded = self.weight * decay ** len(batch)
        weight = faded + len(batch)
        batch_mean = math.fsum(batch) / len(batch)
        distance = batch_mean - self.mean
        scatter = math.fsum((reward - batch_mean) ** 2 for reward in batch)
        scatter += faded * self.variance + distance**2 * faded * len(batch) / weight
        return type(self)(
            weight=weight,
            mean=self.mean + distance * len(batch) / weight,
            variance=scatter / weight,
        )

    @property
    def deviation(self) -> float:
        """Standard deviation."""
        return math.sqrt(self.variance)

    def standardised(self, reward: float) -> float:
        """Return `reward` in standard deviations from the mean."""
        return (reward - self.mean) / (self.deviation + FLOOR)


def priced_reward(sample: ScoredSample, settings: TrainerSettings) -> float:
    """Return the reward less the price of not stopping; NaN where it could not be given.

    It is not clipped: a group's own mean and spread say what is much.
    """
    return sample.reward - (0.0 if sample.stopped else settings.missing_stop_penalty)


def clipped_reward(
    sample: ScoredSample, settings: TrainerSettings, statistics: RewardStatistics | None = None
) -> float:
    """Return the reward standardised by `statistics`, clipped, less the price of not stopping."""
    reward = sample.reward if statistics is None else statistics.standardised(sample.reward)
    clipped = max(-settings.reward_clip, min(settings.reward_clip, reward))
    return clipped - (0.0 if sample.stopped else settings.missing_stop_penalty)
