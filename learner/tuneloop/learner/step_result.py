"""What came of a training step. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tuneloop.learner.memory import peak_memory_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The metrics of a step, and whether it changed the weights."""

    metrics: Mapping[str, float]
    skipped: bool = False
    """True when the weights are as they were before."""
    reason: str = ""
    """Why it was skipped: `non_finite_loss`, `non_finite_gradient`, `gradient_spike`, `no_samples`,
    `no_spread` (every group's rewards are the same)."""
    peak_memory_bytes: int = field(default_factory=peak_memory_bytes, compare=False)
    """Most memory held up to the end of the step, in bytes: of the GPU, else of the process."""
