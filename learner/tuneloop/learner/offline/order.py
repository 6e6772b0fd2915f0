"""Which rows a step takes: a function of seed and step, so that there is nothing to resume."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
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
        """The rows of a step, counted from 0."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        permutation = list(range(self.count))
        # Seeded with text, the generator is the same on every platform and Python.
        random.Random(f"{self.seed}, epoch {epoch}").shuffle(permutation)  # noqa: S311
        start = batch * self.batch_size
        return permutation[start : start + self.batch_size]
