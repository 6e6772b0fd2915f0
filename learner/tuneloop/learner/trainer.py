"""What the loop asks of a trainer, whatever model it trains."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tuneloop.learner.samples import TokenSequence
from tuneloop.learner.step_result import StepResult


class Trainer(Protocol):
    """A model and its optimizer. All methods block and are called from one thread."""

    @property
    def needs_reference(self) -> frozenset[str]:
        """Objectives whose steps compare the policy with the reference policy."""
        ...

    def step(self, samples: Mapping[str, Sequence[Any]]) -> StepResult:
        """One optimizer step on samples by objective.

        Raises `InvalidRequest` with `param` the sample's id when one cannot be learned from; the
        weights are then as they were.
        """
        ...

    def reference_logprobs(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        """Log-probs of the completion tokens by the reference policy, at each one's temperature.

        () for a sequence that cannot be learned from; `step` says why.
        """
        ...

    def finite(self) -> bool:
        """Whether every weight is a number."""
        ...

    def save_checkpoint(self, folder: Path, step: int) -> None:
        """Write all that is needed to go on; `folder` appears on disk whole or not at all."""
        ...

    def load_checkpoint(self, folder: Path) -> None:
        """Go on from a checkpoint; raises `CorruptData`, and nothing has changed then."""
        ...

    def save_weights(self, folder: Path) -> None:
        """Write the weights as a version's files into an empty folder."""
        ...
