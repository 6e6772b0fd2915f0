"""The trainer of any model, as the loop and offline runs use it, and the result of a step."""

import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tuneloop.learner.samples import Reference, Tokens, TokenSequence

if TYPE_CHECKING:
    from torch import Tensor

StepLogprobs = Mapping[Tokens, tuple[TokenSequence, float]]
"""The completions that a step learned from, as it did (at which temperature), and log π of each."""


def peak_memory_bytes() -> int:
    """Return the most memory held so far: of the GPU if one was used, else of this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The metrics of a step, and whether it changed the weights."""

    metrics: Mapping[str, float]
    skipped: bool = False
    """True when the weights have not changed."""
    reason: str = ""
    """Why it was skipped: `non_finite_loss`, `non_finite_gradient`, `gradient_spike`, `no_samples`,
    `no_spread` (every group's rewards are the same)."""
    logprobs: StepLogprobs = field(default_factory=dict, compare=False, repr=False)
    """Of the policy as it was before the step; empty where a trainer does not tell."""
    peak_memory_bytes: int = field(default_factory=peak_memory_bytes, compare=False)
    """Most memory held up to the end of the step, in bytes: of the GPU, else of the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerState:
    """Tensors by name, and plain values; a checkpoint holds one for each trainer."""

    model: Mapping[str, "Tensor"]
    """What is trained."""
    optimizer: Mapping[str, "Tensor"]
    """`<parameter>.<moment>` of the optimizer."""
    scheduler: Mapping[str, Any]
    """Where the learning rate is; JSON."""


class Trainer(Protocol):
    """A model and its optimizer, as the loop and an offline run see it.

    All methods block and are called from one thread.
    """

    @property
    def needs_reference(self) -> frozenset[str]:
        """Objectives whose steps compare the policy with the reference policy."""
        ...

    def check(self, objective: str, sample: Any) -> None:
        """Raise `InvalidRequest`, `param` the sample's id, if `step` could not learn from it."""
        ...

    def as_learned(self, sample: Any) -> Any:
        """Return a sample in the form that `step` learns from it: see `learned_tokens`."""
        ...

    def step(self, samples: Mapping[str, Sequence[Any]]) -> StepResult:
        """Take one optimizer step on samples by objective.

        Where memory runs out it is taken again in smaller passes. Raises `InvalidRequest` with
        `param` the sample's id when one cannot be learned from, and `MemoryError` when one does not
        fit alone; the weights are then unchanged.
        """
        ...

    def reference_logprobs(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        """Return the reference policy's log-probs of the completion tokens.

        They are at each sequence's temperature; () for one that cannot be learned from, of which
        `step` says why.
        """
        ...

    def references(self, sequences: Sequence[TokenSequence]) -> list[Reference]:
        """Return those log-probs, and what each completion is like."""
        ...

    def logprobs(self, sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        """Return the log-probs of the completion tokens under the weights as they are now.

        As `reference_logprobs` otherwise.
        """
        ...

    def finite(self) -> bool:
        """Return whether every weight is a number."""
        ...

    @property
    def token_budget(self) -> int:
        """The most tokens in a forward pass; it shrinks where memory runs out, and stays small."""
        ...

    def stage_checkpoint(self, position: Mapping[str, Any]) -> Callable[[Path], None]:
        """Copy into main memory all that training resumes from; what is returned writes it.

        It is given a folder, which appears on disk whole or not at all. It may be called in any
        thread, while training goes on; of several ranks at once, in this one. `position` is JSON
        that is kept with it.
        """
        ...

    def load_checkpoint(self, folder: Path) -> None:
        """Resume from a checkpoint; raises `CorruptData`, and nothing has changed then."""
        ...

    def save_weights(self, folder: Path) -> None:
        """Write the weights as a version's files into an empty folder."""
        ...
