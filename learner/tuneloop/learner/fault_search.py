"""The search for the sample that makes steps fail, in ever smaller batches.

A step fails if it raises or if a guard skips it: its loss or gradient is not finite, or a spike.
All its samples stay open, and the next batch is half as large, down to a single sample. That one is
refused only with proof that the fault is its own: since it first failed, a step without it has
succeeded. Without proof it steps aside for the others. If these succeed it is tried again and, if
it fails, refused. If they fail as well the fault lies elsewhere (a broken device, gradients that
have become larger for good): all are tried again after growing pauses, and nothing is refused.

A sample that comes alone can have no such proof. It is refused after `LONE_TRIES` failures if no
other sample has failed, but only one such sample between two steps that succeed.

Samples that were learned from before and replayed beside new ones are not searched: those of a step
that failed are not replayed again.

A sample that there is not enough memory for is never refused. It is tried again after a pause, in
case there is more by then.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from tuneloop.learner.batching.batch import Batch, ids_of
from tuneloop.learner.ledger.queue.ready import Refusal

FAULTS = frozenset({"non_finite_loss", "non_finite_gradient", "gradient_spike"})
"""The reasons of `StepResult` for which a step is searched; others are no sample's fault."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
FAILED_REPLAYS = 256
"""The most replays to leave out."""
LONE_TRIES = 4
"""With the pauses between them, 7 seconds: longer than other samples wait for a full batch."""

Key = tuple[str, str]
"""Objective and sample id."""


@dataclass(slots=True, kw_only=True)
class Suspect:
    """A sample that failed alone and waits while the others are tried."""

    release_time: float
    """When it may be tried again if no step succeeds before."""
    too_large: bool
    """There was not enough memory for it: other samples' success says nothing."""


class FaultSearch:
    """What is known of the steps of one model that failed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit: int | None = None
        """The most samples in the next batch."""
        self._clock = clock
        self._suspects: dict[Key, Suspect] = {}
        self._failed_replays: deque[Key] = deque(maxlen=FAILED_REPLAYS)
        self._successes = 0
        self._first_failure: dict[Key, int] = {}
        """How many steps had succeeded when a sample first failed."""
        self._tries: Counter[Key] = Counter()
        """How often a sample failed alone."""
        self._last_unproven = -1
        """How many steps had succeeded when a sample was last refused without proof."""

    def excluded_ids(self, objective: str) -> list[str]:
        """Return the samples of an objective to leave out: suspects, and replays that failed."""
        left_out = (*self._suspects, *self._failed_replays)
        return [sample_id for name, sample_id in left_out if name == objective]

    def note_success(self, batch: Batch) -> None:
        """Note that a step on `batch` succeeded: the model works, so suspects are tried again."""
        self._successes += 1
        self.limit = None
        self._suspects = {key: s for key, s in self._suspects.items() if s.too_large}
        self._forget(keys_of(batch))

    def note_failure(self, batch: Batch, reason: str, *, too_large: bool = False) -> list[Refusal]:
        """Note that a step on `batch` failed; return what is to be refused.

        `too_large` says that it ran out of memory.
        """
        replayed = {(name, i) for name, ids in batch.replayed.items() for i in ids}
        keys = [key for key in keys_of(batch) if key not in replayed]
        self._failed_replays.extend(replayed)
        if not too_large:
            for key in keys:
                self._first_failure.setdefault(key, self._successes)
        if len(batch) > 1:
            self.limit = len(batch) // 2
            return []
        self.limit = None
        self._tries.update(keys)
        if not too_large and self._at_fault(keys):
            self._forget(keys)
            return [Refusal(sample_id=i, objective=name, reason=reason) for name, i in keys]
        for key in keys:
            pause = FIRST_PAUSE_SECONDS * 2 ** min(self._tries[key] - 1, 10)
            release_time = self._clock() + min(pause, LONGEST_PAUSE_SECONDS)
            self._suspects[key] = Suspect(release_time=release_time, too_large=too_large)
        return []

    def release(self) -> None:
        """Let suspects be tried again whose pause is over."""
        now = self._clock()
        self._suspects = {k: s for k, s in self._suspects.items() if s.release_time > now}

    def _at_fault(self, keys: list[Key]) -> bool:
        """Return whether the sample of these keys, which failed alone, is to be refused."""
        if any(self._first_failure[key] < self._successes for key in keys):
            return True
        others = self._first_failure.keys() - set(keys)
        lone = not others and all(self._tries[key] >= LONE_TRIES for key in keys)
        if lone and self._last_unproven < self._successes:
            self._last_unproven = self._successes
            return True
        return False

    def _forget(self, keys: list[Key]) -> None:
        for key in keys:
            self._suspects.pop(key, None)
            self._first_failure.pop(key, None)
            self._tries.pop(key, None)


def keys_of(batch: Batch) -> list[Key]:
    """Return the keys of the samples of a batch, of groups those of their members."""
    return [
        (objective, sample_id)
        for objective, group in batch.samples.items()
        for sample in group
        for sample_id in ids_of(sample)
    ]
