"""Recent gradient norms, which reveal a spike."""

import math
from collections.abc import Mapping
from statistics import median
from typing import Any, Self

from tuneloop.errors import CorruptData

WINDOW = 20
"""Norms remembered of each kind of step."""
LEAST = 10
"""Norms below which none is called a spike."""


class GradientNorms:
    """Norms of recent steps by kind of step: each mix of losses has its own usual size.

    Spikes are remembered too: what was a spike is usual once it fills half of the window, so that a
    change for good does not stop learning.
    """

    def __init__(self) -> None:
        """Start without a history."""
        self._recent: dict[str, list[float]] = {}

    def is_spike(self, kind: str, norm: float, factor: float) -> bool:
        """Remember `norm`; return whether it is over `factor` times the median of recent ones."""
        recent = self._recent.get(kind, [])
        spike = len(recent) >= LEAST and norm > factor * median(recent)
        if norm > 0:
            self._recent[kind] = [*recent, norm][-WINDOW:]
        return spike

    def state(self) -> dict[str, list[float]]:
        """Return plain values for a checkpoint."""
        return {kind: list(norms) for kind, norms in self._recent.items()}

    @classmethod
    def of_state(cls, state: Any) -> Self:
        """Return norms as they were; raises `CorruptData`."""
        norms = cls()
        if not isinstance(state, Mapping):
            raise CorruptData("checkpoint: scheduler.gradient_norms is not a table")
        for kind, values in state.items():
            if not isinstance(values, list) or not all(map(_is_norm, values)):
                raise CorruptData(f"checkpoint: scheduler.gradient_norms.{kind} holds other things")
            norms._recent[str(kind)] = [float(value) for value in values]
        return norms


def _is_norm(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0
