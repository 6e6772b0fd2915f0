"""What a batch is worth, as a part of a full step.

A full step takes as many judgements as `full_step`, each trusted. Batches of scored completions are
always full: only trust makes theirs smaller.
"""

import math
from collections.abc import Mapping, Sequence

from tuneloop.learner.samples import (
    SCORED_OBJECTIVES,
    PolicySample,
    RewardSample,
    ScoredGroup,
)
from tuneloop.learner.trainer.settings import TrainerSettings

Given = Mapping[str, Sequence[PolicySample]]
"""Samples by objective."""
Shares = Mapping[str, float]
"""Parts of a full step by objective."""


def shares_of_step(given: Given, settings: TrainerSettings) -> Shares:
    """Return what each objective's batch would be worth if all of it were trusted."""
    shares = {}
    for name, batch in given.items():
        shares[name] = settings.objective_weights.get(name, 1.0)
        if settings.full_step is not None and name not in SCORED_OBJECTIVES:
            weights = (s.weight for s in batch if not isinstance(s, ScoredGroup))
            shares[name] *= math.fsum(weights) / settings.full_step
    return shares


def rate_share(given: Given, settings: TrainerSettings) -> float:
    """Return the share of the rate that a step is taken at."""
    return settings.scored_rate if given.keys() & SCORED_OBJECTIVES else 1.0


def reward_evidence(samples: Sequence[RewardSample], full_step: float | None) -> float:
    """Return what a batch of the reward model is worth, at most a full step."""
    if full_step is None:
        return 1.0
    return min(1.0, math.fsum(sample.weight * sample.trust for sample in samples) / full_step)


def anchors_beside(given: Given, settings: TrainerSettings) -> int:
    """Return how many anchors a batch takes: in proportion to what it is worth, at least one."""
    if settings.full_step is None:
        return settings.anchor_batch
    worth = math.fsum(shares_of_step(given, settings).values())
    return max(1, round(settings.anchor_batch * min(1.0, worth)))
