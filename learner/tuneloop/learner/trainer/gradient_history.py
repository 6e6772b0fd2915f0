"""What recent gradients were: norms, which reveal a spike, and whether they agree."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Self

import torch

from tuneloop.errors import CorruptData
from tuneloop.learner.models.world import full_tensor

WINDOW = 20
"""Norms remembered of each kind of step."""
LEAST = 10
"""Norms below which none is called a spike."""


DECAY = 0.7
"""Weight of what was known of the agreement once another step has come."""
LEAST_FACTOR = 0.2
"""Of a step whose gradient points nowhere in particular, and of the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientAgreement:
    """The mean cosine of recent gradients with the gradients before them.

    Where judgements have something in common so have their gradients, and where they are noise the
    gradients are at right angles. The mean cosine estimates the signal's share S/(S + N) of a
    gradient's squared norm, of which the best rate is a function that rises from 0 (McCandlish et
    al. 2018, https://arxiv.org/abs/1812.06162, equations 2.7 and 2.8). A straight line up to
    `full` is our choice.
    """

    mean: float = 0.0

    def after(self, cosine: float) -> Self:
        """Return the agreement once a gradient has come that has this cosine."""
        return type(self)(mean=DECAY * self.mean + (1 - DECAY) * cosine)

    def factor(self, full: float) -> float:
        """Return the part of a full step to take, where `full` agreement makes one."""
        return max(LEAST_FACTOR, min(1.0, self.mean / full))

    @classmethod
    def of_state(cls, state: Any) -> Self:
        """Return the agreement that was; raises `CorruptData`."""
        if not isinstance(state, (int, float)) or not -1 <= state <= 1:
            raise CorruptData(f"checkpoint: scheduler.agreement is {state!r}")
        return cls(mean=float(state))


def cosine_with_moment(adamw: torch.optim.AdamW) -> float | None:
    """Return the cosine of the first group's gradient with the mean of those before, or None.

    The mean is Adam's first moment; before the first step there is none.
    """
    products = []
    for parameter in adamw.param_groups[0]["params"]:
        moment = adamw.state.get(parameter, {}).get("exp_avg")
        if parameter.grad is not None and moment is not None:
            pairs = ((parameter.grad, moment), (parameter.grad,) * 2, (moment, moment))
            products.append(torch.stack([full_tensor((a * b).sum()) for a, b in pairs]))
    if not products:
        return None
    both, ours, theirs = torch.stack(products).sum(0).tolist()
    norms = math.sqrt(ours) * math.sqrt(theirs)
    return float(both / norms) if norms > 0 else None


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
