"""What a batch is worth, as a part of a full step; and samples as its losses compare them.

A full step takes as many judgements as `full_step`, each trusted. Batches of scored completions are
always full: only trust makes theirs smaller.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tuneloop.learner.objectives.base import Plan
from tuneloop.learner.samples import (
    SCORED_OBJECTIVES,
    DemonstrationSample,
    PairSample,
    PolicySample,
    ScoredGroup,
    ThumbSample,
    at_temperature_one,
)
from tuneloop.learner.trainer.settings import TrainerSettings

Given = Mapping[str, Sequence[PolicySample]]
"""Samples by objective."""


def share_of_step(objective: str, plan: Plan, settings: TrainerSettings) -> float:
    """Return what an objective's batch would be worth if all of it were trusted."""
    rate = settings.objective_weights.get(objective, 1.0)
    if settings.full_step is None or plan.judgements is None:
        return rate
    return rate * plan.judgements / settings.full_step


def most_evidence(given: Given, settings: TrainerSettings) -> float:
    """Return what a batch is worth if all of it is trusted, before it is planned."""
    if settings.full_step is None:
        return 1.0
    weights = settings.objective_weights
    return math.fsum(
        weights.get(name, 1.0)
        * (1.0 if name in SCORED_OBJECTIVES else _judgements(batch) / settings.full_step)
        for name, batch in given.items()
    )


def _judgements(batch: Sequence[PolicySample]) -> float:
    return math.fsum(sample.weight for sample in batch if not isinstance(sample, ScoredGroup))


def anchors_beside(given: Given, settings: TrainerSettings) -> int:
    """Return how many anchors a batch takes: in proportion to what it is worth, at least one."""
    return max(1, round(settings.anchor_batch * min(1.0, most_evidence(given, settings))))


def as_compared(sample: PolicySample) -> PolicySample:
    """Return a preference or a demonstration at temperature 1, a scored completion as it is."""
    match sample:
        case PairSample():
            chosen, rejected = map(at_temperature_one, (sample.chosen, sample.rejected))
            return replace(sample, chosen=chosen, rejected=rejected)
        case ThumbSample() | DemonstrationSample():
            return replace(sample, sequence=at_temperature_one(sample.sequence))
    return sample
