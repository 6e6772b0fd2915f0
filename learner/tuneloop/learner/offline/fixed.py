"""The course over samples that are there from the beginning."""

from collections.abc import Sequence
from typing import Any

from tuneloop.learner.offline.course import Lesson
from tuneloop.learner.offline.order import Order


class FixedCourse:
    """Passes over samples in batches."""

    def __init__(self, objective: str, samples: Sequence[Any], order: Order) -> None:
        self._objective = objective
        self._samples = samples
        self._order = order

    @property
    def steps(self) -> int:
        """See `Course.steps`."""
        return self._order.steps

    def lesson(self, step: int) -> Lesson | None:
        """See `Course.lesson`."""
        if step >= self.steps:
            return None
        chosen = [self._samples[row] for row in self._order.rows(step)]
        epoch = (step + 1) / self._order.steps_per_epoch
        return Lesson(samples={self._objective: chosen}, epoch=epoch)

    def due(self, step: int) -> bool:
        """See `Course.due`."""
        return False

    def resume(self, step: int) -> None:
        """See `Course.resume`: every step follows from its number."""
