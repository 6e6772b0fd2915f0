"""What a run learns from at each step.

Everything follows from the step's number and the weights at that step, never from what happened in
this process before: a run that is killed and resumed takes the same steps.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOrder:
    """A new permutation of all rows in every epoch; the last step of an epoch may be smaller."""

    count: int
    batch_size: int
    epochs: int
    seed: str

    @property
    def steps_per_epoch(self) -> int:
        """Steps that see every row once."""
        return -(-self.count // self.batch_size)

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.steps_per_epoch * self.epochs

    def rows(self, step: int) -> list[int]:
        """Return the rows of a step, counted from 0."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        permutation = list(range(self.count))
        # Seeded with text, the generator is the same on every platform and Python.
        random.Random(f"{self.seed}, epoch {epoch}").shuffle(permutation)  # noqa: S311
        start = batch * self.batch_size
        return permutation[start : start + self.batch_size]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainStep:
    """The samples of one step."""

    samples: Mapping[str, Sequence[Any]]
    """By objective, as a trainer's `step` takes them."""
    epoch: float
    """Passes over the data up to the end of this step."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Figures of the sampled completions."""


class TrainSource(Protocol):
    """The steps of a run."""

    @property
    def steps(self) -> int:
        """Steps in all, as far as is known now."""
        ...

    def train_step(self, step: int) -> TrainStep | None:
        """Return the samples of a step, counted from 0; None when the run is over."""
        ...

    def due(self, step: int) -> bool:
        """Return whether to save the weights before this step, since expensive work follows."""
        ...

    def resume(self, step: int) -> None:
        """Resume before this step; what was prepared for later ones is discarded."""
        ...


class FixedSource:
    """Passes over samples in batches."""

    def __init__(self, objective: str, samples: Sequence[Any], order: RowOrder) -> None:
        self._objective = objective
        self._samples = samples
        self._order = order

    @property
    def steps(self) -> int:
        """See `TrainSource.steps`."""
        return self._order.steps

    def train_step(self, step: int) -> TrainStep | None:
        """See `TrainSource.train_step`."""
        if step >= self.steps:
            return None
        chosen = [self._samples[row] for row in self._order.rows(step)]
        epoch = (step + 1) / self._order.steps_per_epoch
        return TrainStep(samples={self._objective: chosen}, epoch=epoch)

    def due(self, step: int) -> bool:
        """See `TrainSource.due`."""
        return False

    def resume(self, step: int) -> None:
        """See `TrainSource.resume`: every step follows from its number."""
