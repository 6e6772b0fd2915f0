"""What came of a training step. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The metrics of a step, and whether it changed the weights."""

    metrics: Mapping[str, float]
    skipped: bool = False
    """True when the weights are as they were before."""
    reason: str = ""
    """Why it was skipped: `non_finite_loss`, `non_finite_gradient`, `gradient_spike`, `no_samples`,
    `no_spread` (every group's rewards are the same)."""
