"""How many thumbs of late are up, how many down. Standard library only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from tuneloop.learner.samples import ThumbSample


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassBalance:
    """Weights of the thumbs seen, the newest weighing most."""

    up: float = 0.0
    """Each thumb's weight, times the decay for each unit of weight that came later."""
    down: float = 0.0

    def updated(self, thumbs: Sequence[ThumbSample], decay: float) -> Self:
        """Return the balance with a batch of thumbs, whose order does not matter."""
        up = math.fsum(thumb.weight * thumb.trust for thumb in thumbs if thumb.desirable)
        down = math.fsum(thumb.weight * thumb.trust for thumb in thumbs if not thumb.desirable)
        faded: float = decay ** (up + down)
        return type(self)(up=self.up * faded + up, down=self.down * faded + down)

    @property
    def desirable_share(self) -> float:
        """Share of the weight that is up; one half as long as there is none."""
        total = self.up + self.down
        return self.up / total if total > 0 else 0.5
