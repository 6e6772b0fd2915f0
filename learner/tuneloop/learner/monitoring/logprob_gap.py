"""Compare generation's log-probs with the learner's: of the same tokens, by the same weights.

They differ by precision and kernels, a little; by more where both hold the model in different
formats, and by much where they hold different weights. What is learned from the sampler's
log-probs (importance weights, KL) is off by as much.
"""

import math
import time
from collections.abc import Callable, Sequence

from tuneloop.learner import metrics
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.reports import alarm_figures, answers
from tuneloop.learner.samples import TokenSequence
from tuneloop.learner.training_run import TrainingRun

LEAST_TOKENS = 256
"""Of answers, for a mean to say something; no more are taken, as they cost a forward pass."""
RETRY_SECONDS, EVERY_SECONDS = 30.0, 600.0
"""Between looks for enough answers, and between measurements."""


class LogprobGap:
    """Measures the gap of the versions that answer, one after the other."""

    def __init__(
        self,
        database: Database,
        training_run: TrainingRun,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._run = training_run
        self._clock = clock
        self._measured: int | None = None
        self._next_time = -math.inf
        known = alarm_figures.logprob_gap(database)
        metrics.logprob_gap.set(math.nan if known is None else known)

    def measure(self) -> None:
        """Measure if it is time; runs in the trainer's thread.

        Only while the weights are those of the learner's newest version: after another step they
        differ from what sampled.
        """
        version = self._run.parent
        if self._run.unpublished_steps or version == self._measured:
            return
        if self._clock() < self._next_time:
            return
        self._next_time = self._clock() + RETRY_SECONDS
        sampled = answers.sampled_plainly(self._database, version, tokens=LEAST_TOKENS)
        if sum(len(s.completion_token_ids) for s in sampled) < LEAST_TOKENS:
            return
        gap = mean_gap(sampled, self._run.trainer.logprobs(sampled))
        self._measured, self._next_time = version, self._clock() + EVERY_SECONDS
        if gap is not None:
            alarm_figures.set_logprob_gap(self._database, gap)
            metrics.logprob_gap.set(gap)


def mean_gap(
    sampled: Sequence[TokenSequence], logprobs: Sequence[tuple[float, ...]]
) -> float | None:
    """Return the mean of |log π − log π_generation| by token, in nats; None without any.

    `logprobs` are the learner's, () of a completion that it cannot score.
    """
    gaps = [
        abs(ours - theirs)
        for sequence, row in zip(sampled, logprobs, strict=True)
        if row
        for ours, theirs in zip(row, sequence.generation_logprobs, strict=True)
    ]
    return math.fsum(gaps) / len(gaps) if gaps else None
