"""Steps on the way into the ledger: taken, in a checkpoint that is being written, committed.

The invariant: a sample's use and the weights that learned from it become durable together. A step
lives in memory until its checkpoint is on disk; then one ledger transaction commits the step, its
uses and the checkpoint's name. A crash before that transaction undoes all three, a crash after it
none, so every sample is used exactly once in the weights that are trained further.

A large checkpoint is written beside the next steps, one at a time. That changes when a step is
committed, and nothing else: what is not committed is not used again as long as the process lives,
and has not happened once it is dead.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from tuneloop.learner import metrics
from tuneloop.learner.ledger.accounting import steps
from tuneloop.learner.ledger.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """A checkpoint that is being written, and the steps that it will commit."""

    checkpoint: str
    steps: list[steps.Step]
    written: Future[None]


class Uncommitted:
    """The steps of one model that are not in the ledger yet; used from the trainer's thread."""

    def __init__(
        self, *, model: str, database: Database, beside: bool, clock: Callable[[], float]
    ) -> None:
        """With `beside` checkpoints are written in a thread of their own."""
        self.taken: list[steps.Step] = []
        """Steps since the last checkpoint that was begun."""
        self._model = model
        self._database = database
        self._beside = beside
        self._clock = clock
        self._writing: Writing | None = None

    @property
    def is_writing(self) -> bool:
        """Whether steps wait for their checkpoint, or for the ledger."""
        return self._writing is not None

    def ids(self, objective: str) -> list[str]:
        """Return the samples of an objective that they used."""
        waiting = [] if self._writing is None else self._writing.steps
        return [
            sample_id
            for step in (*waiting, *self.taken)
            for used in (step.samples, step.replayed)
            for sample_id in used.get(objective, ())
        ]

    def begin(self, checkpoint: str, write: Callable[[], None]) -> None:
        """Begin to write the checkpoint of the steps taken; `settle` commits them."""
        assert self._writing is None
        written: Future[None] = Future()

        def work() -> None:
            try:
                with metrics.checkpoint_seconds.time():
                    write()
            except BaseException as error:
                written.set_exception(error)
            else:
                written.set_result(None)

        self._writing = Writing(checkpoint=checkpoint, steps=self.taken, written=written)
        self.taken = []
        if self._beside:
            threading.Thread(target=work, name="checkpoint", daemon=True).start()
        else:
            work()

    def settle(self, *, wait: bool = True) -> bool:
        """Commit the steps whose checkpoint is written; return whether there were any.

        Without `wait` one that is still being written is left alone. Raises what writing it raised;
        its steps then need another.
        """
        writing = self._writing
        if writing is None or not (wait or writing.written.done()):
            return False
        try:
            writing.written.result()
        except BaseException:
            self.taken = [*writing.steps, *self.taken]
            self._writing = None
            raise
        steps.commit_steps(
            self._database, self._model, writing.steps, writing.checkpoint, self._clock()
        )
        self._writing = None
        return True

    def discard(self) -> None:
        """Forget the steps; a checkpoint that is being written is waited for, and stays unknown."""
        if self._writing is not None:
            self._writing.written.exception()
        self._writing, self.taken = None, []
