"""The samples of one step, and what forming them found."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tuneloop.learner.ledger.queue.ready import Refusal
from tuneloop.learner.samples import ScoredGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The samples of one step."""

    samples: Mapping[str, Sequence[Any]]
    """By objective, replays included."""
    replayed: Mapping[str, Collection[str]] = field(default_factory=dict)
    """Ids by objective of those that were used before."""

    def __len__(self) -> int:
        return sum(len(group) for group in self.samples.values())

    def mapped(self, change: Callable[[Any], Any]) -> dict[str, list[Any]]:
        """Return what `change` makes of each sample, by objective."""
        return {objective: list(map(change, group)) for objective, group in self.samples.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class FormedBatch:
    """What a batcher read from the ledger; `TrainingRun.next_batch` writes down what follows."""

    batch: Batch | None
    """None while it is too early for a step."""
    refusals: Sequence[Refusal] = ()
    """Samples that can never be trained on."""
    fresh_versions: Mapping[str, Collection[int]] = field(default_factory=dict)
    """By objective: samples of other policy versions are stale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProgress:
    """Samples towards a step."""

    objective: str
    """`judgements` stands for dpo, kto, sft and sdft, which fill a batch together."""
    have: int
    want: int


class RunProgress(Protocol):
    """What a batcher needs to know of a training run."""

    @property
    def step(self) -> int:
        """Optimizer steps taken, committed or not."""
        ...

    def uncommitted_ids(self, objective: str) -> list[str]:
        """Return the samples of an objective that no batch may hold now."""
        ...


class Batcher(Protocol):
    """Forms batches for one training run. It reads the ledger and writes nothing."""

    def form(self, run: RunProgress, limit: int | None = None) -> FormedBatch:
        """Return the next batch, with at most `limit` samples."""
        ...

    def renew_trust(self) -> None:
        """Work out again how far judgements can be trusted, at the next batch."""
        ...

    def progress(self, run: RunProgress) -> list[BatchProgress]:
        """Return how far the next steps are."""
        ...


def ids_of(sample: Any) -> list[str]:
    """Return the ledger's ids of a sample: its own, or those of a group's members."""
    if isinstance(sample, ScoredGroup):
        return [member.sample_id for member in sample.samples]
    return [sample.sample_id]


def without_refused(sample: Any, refused: Collection[str]) -> Any | None:
    """Return what is left of a sample; None if this step can learn nothing from it."""
    kept = [i for i in ids_of(sample) if i not in refused]
    if len(kept) == len(ids_of(sample)):
        return sample
    if len(kept) < 2:
        return None
    return replace(sample, samples=tuple(m for m in sample.samples if m.sample_id in kept))
