"""What a run does at each step: which samples it learns from.

Everything follows from the step's number and the weights at that step, never from what happened in
this process before: a run that is killed and resumed takes the same steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """The samples of one step."""

    samples: Mapping[str, Sequence[Any]]
    """By objective, as a trainer's `step` takes them."""
    epoch: float
    """Passes over the data up to the end of this step."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What was seen while sampling."""


class Course(Protocol):
    """The steps of a run."""

    @property
    def steps(self) -> int:
        """How many there are, as far as is known now."""
        ...

    def lesson(self, step: int) -> Lesson | None:
        """The samples of a step, counted from 0; None when the run is over."""
        ...

    def due(self, step: int) -> bool:
        """Whether the weights before this step should be kept, since work follows that is dear."""
        ...

    def resume(self, step: int) -> None:
        """Go on before this step; what was prepared for later ones is thrown away."""
        ...
