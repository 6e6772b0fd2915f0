"""A model in training and its accounting: batch, step, commit, restore.

The invariant: a sample's use and the weights that learned from it become durable together. A step
lives in memory until its checkpoint is on disk; then one ledger transaction commits the step, its
uses and the checkpoint's name. A crash before that transaction undoes all three, a crash after it
none, so every sample is used exactly once in the weights that go on.
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneloop.errors import CorruptData, InvalidRequest
from tuneloop.learner import metrics
from tuneloop.learner.durable import keep_only
from tuneloop.learner.ledger import ready, steps, versions
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.ready import Refusal
from tuneloop.learner.step_result import StepResult
from tuneloop.learner.trainer import Trainer

logger = logging.getLogger("tuneloop.learner.trainee")

Batch = Mapping[str, Sequence[Any]]
"""Samples by objective."""


@dataclass(slots=True, kw_only=True)
class Uncommitted:
    """Steps taken whose checkpoint is not committed."""

    taken: list[steps.Step] = field(default_factory=list)

    def ids(self, objective: str) -> list[str]:
        """Samples of an objective that they used."""
        return [i for step in self.taken for i in step.samples.get(objective, ())]


class Trainee:
    """One model (`policy` or `reward_model`), its trainer, its place in the ledger.

    All methods block and are called from the trainer's thread.
    """

    def __init__(
        self,
        *,
        model: str,
        policy: str,
        trainer: Trainer,
        database: Database,
        checkpoints: Path,
        keep_checkpoints: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.model = model
        self.policy = policy
        """Name in manifests."""
        self.trainer = trainer
        self.step = 0
        """Optimizer steps taken, committed or not."""
        self.unpublished_steps = 0
        """Steps since the last version that changed the weights."""
        self.unpublished_since: float | None = None
        """When the first of them was taken."""
        self.parent = 0
        """The version the weights grew from."""
        self.published_step = 0
        """The last step that version had."""
        self.uncommitted = Uncommitted()
        self.failures = 0
        """Steps that raised, one after the other."""
        self._database = database
        self._checkpoints = checkpoints
        self._keep_checkpoints = keep_checkpoints
        self._clock = clock

    def restore(self) -> None:
        """Go on from the newest committed checkpoint that can be read.

        Checkpoints the ledger does not know are deleted. Where the newest are damaged, the steps
        after the last good one are undone in the ledger, so that their samples are used again.
        """
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        known = steps.checkpoints(self._database, self.model)
        strangers = keep_only(self._checkpoints, {name for _, name in known})
        if strangers:
            logger.info("removed uncommitted checkpoints %s", ", ".join(strangers))
        for step, name in known:
            folder = self._checkpoints / name
            if not folder.exists():  # pruned
                continue
            try:
                self.trainer.load_checkpoint(folder)
            except CorruptData as error:
                logger.error("%s: checkpoint %s cannot be used: %s", self.model, name, error)
                continue
            self.step = step
            break
        else:
            self.step = 0
            if known:
                logger.error("%s: no usable checkpoint; starting from the base model", self.model)
        undone = steps.roll_back(self._database, self.model, self.step, self._clock())
        if undone:
            logger.warning(
                "%s: went back to step %d; %d samples will be used again",
                self.model,
                self.step,
                undone,
            )
        kept = {name for _, name in steps.checkpoints(self._database, self.model)}
        keep_only(self._checkpoints, kept)
        self._find_place()
        logger.info("%s: at step %d, version %d", self.model, self.step, self.parent)

    def _find_place(self) -> None:
        head = versions.head(self._database, self.model)
        self.parent = 0 if head is None else head.version
        self.published_step = 0 if head is None else head.last_step
        self.unpublished_steps = steps.unpublished_steps(
            self._database, self.model, self.published_step
        )
        self.unpublished_since = self._clock() if self.unpublished_steps else None

    def train(self, batch: Batch) -> StepResult:
        """Take one step; what it used counts once the step is committed.

        A sample the trainer refuses is taken out for good and the rest is tried again.
        """
        remaining = {objective: list(samples) for objective, samples in batch.items()}
        started = time.perf_counter()
        while any(remaining.values()):
            try:
                result = self.trainer.step(remaining)
            except InvalidRequest as error:
                self._drop(remaining, error)
                continue
            metrics.step_seconds.labels(self.model).observe(time.perf_counter() - started)
            self._note(remaining, result)
            return result
        return StepResult(metrics={}, skipped=True, reason="no_samples")

    def _drop(self, remaining: dict[str, list[Any]], error: InvalidRequest) -> None:
        refusals = [
            Refusal(sample_id=sample.sample_id, objective=objective, reason=error.message)
            for objective, samples in remaining.items()
            for sample in samples
            if sample.sample_id == error.param
        ]
        if not refusals:
            raise error
        self.refuse(refusals)
        for samples in remaining.values():
            samples[:] = [sample for sample in samples if sample.sample_id != error.param]

    def refuse(self, refusals: Sequence[Refusal]) -> None:
        """Take samples out for good."""
        if not refusals:
            return
        ready.refuse(self._database, refusals)
        for refusal in refusals:
            metrics.samples_refused.labels(refusal.objective).inc()
            logger.warning("sample %s refused: %s", refusal.sample_id, refusal.reason)

    def _note(self, used: Batch, result: StepResult) -> None:
        self.step += 1
        self.uncommitted.taken.append(
            steps.Step(
                step=self.step,
                samples={
                    objective: [sample.sample_id for sample in samples]
                    for objective, samples in used.items()
                    if samples
                },
                skipped=result.skipped,
                metrics=result.metrics,
            )
        )
        if result.skipped:
            return
        self.unpublished_steps += 1
        if self.unpublished_since is None:
            self.unpublished_since = self._clock()

    def commit(self) -> None:
        """Write a checkpoint, then commit the steps taken since the last one."""
        if not self.uncommitted.taken:
            return
        with metrics.checkpoint_seconds.time():
            name = f"step-{self.step:08d}"
            self.trainer.save_checkpoint(self._checkpoints / name, self.step)
            steps.commit_steps(
                self._database, self.model, self.uncommitted.taken, name, self._clock()
            )
        self.uncommitted = Uncommitted()
        self._prune()

    def _prune(self) -> None:
        known = [name for _, name in steps.checkpoints(self._database, self.model)]
        for name in known[self._keep_checkpoints :]:
            shutil.rmtree(self._checkpoints / name, ignore_errors=True)

    def published(self, version: int) -> None:
        """The weights as they are now were saved as `version`."""
        self.parent = version
        self.published_step = self.step
        self.unpublished_steps = 0
        self.unpublished_since = None

    def unpublish(self) -> None:
        """A version was dropped before anybody saw it: its steps wait for another number."""
        self._find_place()
