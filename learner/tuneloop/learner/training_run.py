"""A model in training and its accounting: batch, step, commit (see `uncommitted`), restore."""

import logging
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tuneloop.errors import CorruptData, InvalidRequest
from tuneloop.host import steady_time
from tuneloop.learner import metrics
from tuneloop.learner.batching.batch import Batch, Batcher, ids_of, without_refused
from tuneloop.learner.effects import EffectLog
from tuneloop.learner.fault_search import FAULTS, FaultSearch, keys_of
from tuneloop.learner.files import keep_only
from tuneloop.learner.ledger.accounting import quarantine, steps, versions
from tuneloop.learner.ledger.accounting.uncommitted import Uncommitted
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.queue import features, ready, ref_logprobs
from tuneloop.learner.ledger.queue.ready import Refusal
from tuneloop.learner.trainer.base import StepResult, Trainer

logger = logging.getLogger("tuneloop.learner")

BEGINNING = "step-00000000"
"""The checkpoint from before the first step. It is never deleted, for roll-backs to version 0."""


class TrainingRun:
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
        beside: bool = False,
        clock: Callable[[], float] = steady_time,
    ) -> None:
        """With `beside` checkpoints are written beside the next steps."""
        self.model = model
        self.policy = policy
        """Name in manifests."""
        self.trainer = trainer
        self.step = 0
        """Optimizer steps taken, committed or not."""
        self.unpublished_steps = 0
        """Steps since the last version that changed the weights."""
        self.unpublished_evidence = 0.0
        """The full steps that they amount to: a step on half a batch counts 0.5."""
        self.unpublished_since: float | None = None
        """When the first of them was taken."""
        self.last_version_time: float | None = None
        """When the newest version was made; None before the first."""
        self.parent = 0
        """The version the weights grew from."""
        self.published_step = 0
        """The last step that version had."""
        self.uncommitted = Uncommitted(model=model, database=database, beside=beside, clock=clock)
        self.effects = EffectLog()
        """What the steps since the last version changed."""
        self.unreported = True
        """Whether there may be refused samples without a dead letter."""
        self._fresh = True
        """Whether the trainer has not been trained or restored yet."""
        self.faults = FaultSearch()
        self._database = database
        self._checkpoints = checkpoints
        self._keep_checkpoints = keep_checkpoints
        self._clock = clock

    def restore(self) -> None:
        """Continue from the newest committed checkpoint that can be read.

        Checkpoints the ledger does not know are deleted. If the newest are damaged, the steps after
        the last good one are undone in the ledger, so that their samples are used again.
        """
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        self.uncommitted.discard()
        self.effects = EffectLog()
        known = steps.checkpoints(self._database, self.model)
        strangers = keep_only(self._checkpoints, {BEGINNING, *(name for _, name in known)})
        if strangers:
            logger.info("removed uncommitted checkpoints %s", ", ".join(strangers))
        self._keep_beginning(replace_old=not known)
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
            if not self._fresh:
                self.trainer.load_checkpoint(self._checkpoints / BEGINNING)
        self._fresh = False
        undone = steps.roll_back(self._database, self.model, self.step, self._clock())
        if undone:
            logger.warning(
                "%s: went back to step %d; %d samples will be used again",
                self.model,
                self.step,
                undone,
            )
        kept = {name for _, name in steps.checkpoints(self._database, self.model)}
        keep_only(self._checkpoints, kept | {BEGINNING})
        self._find_place()
        logger.info("%s: at step %d, version %d", self.model, self.step, self.parent)

    def _keep_beginning(self, *, replace_old: bool) -> None:
        """Write the checkpoint from before the first step, while the trainer is still fresh."""
        folder = self._checkpoints / BEGINNING
        if self._fresh and (replace_old or not folder.exists()):
            shutil.rmtree(folder, ignore_errors=True)
            self.trainer.stage_checkpoint({"step": 0})(folder)

    def rewind(self, set_aside_after: int) -> bool:
        """After a quarantine, continue from the last good version; return whether there was one.

        What was learned since counts as never used, except for samples that led to
        `set_aside_after` quarantines.
        """
        put_back = quarantine.put_back(self._database, self._clock(), set_aside_after)
        if put_back is None:
            return False
        self.restore()
        metrics.samples_set_aside.inc(put_back.set_aside)
        logger.warning(
            "%s: goes on from version %d; %d samples were put back, %d set aside",
            self.model,
            put_back.good,
            put_back.samples - put_back.set_aside,
            put_back.set_aside,
        )
        return True

    def _find_place(self) -> None:
        head = versions.head(self._database, self.model)
        self.parent = 0 if head is None else head.version
        self.published_step = 0 if head is None else head.last_step
        waiting = steps.unpublished_evidence(self._database, self.model, self.published_step)
        self.unpublished_steps = len(waiting)
        self.unpublished_evidence = sum(waiting)
        self.last_version_time = versions.newest_time(self._database, self.model)
        self.unpublished_since = self._clock() if self.unpublished_steps else None

    def uncommitted_ids(self, objective: str) -> list[str]:
        """Return the samples of an objective that uncommitted steps used or that step aside."""
        return [*self.uncommitted.ids(objective), *self.faults.excluded_ids(objective)]

    def next_batch(self, batcher: Batcher) -> Batch | None:
        """Form a batch, a small one after steps that failed, and record what forming it found.

        Returns None while it is too early for a step.
        """
        self.faults.release()
        formed = batcher.form(self, self.faults.limit)
        if formed.batch is not None and features.describe(
            self._database, formed.batch.mapped(self.trainer.as_learned), self.trainer.references
        ):
            # What the answers are like tells how far their judgements can be trusted.
            batcher.renew_trust()
            formed = batcher.form(self, self.faults.limit)
        self.refuse(formed.refusals)
        for objective, fresh in formed.fresh_versions.items():
            exclude = self.uncommitted_ids(objective)
            stale = ready.mark_stale(self._database, objective, fresh, exclude)
            metrics.rollouts_stale.inc(stale)
        return formed.batch

    def train(self, batch: Batch) -> StepResult:
        """Take one step; what it used counts once the step is committed.

        If a guard skips it for one of `FAULTS`, nothing is used: see `search_fault`. A sample the
        trainer refuses is refused for good, and the rest is tried again. Raises what
        the trainer raises, and `ArithmeticError` if the new weights are not finite; the weights of
        the last checkpoint are then restored.
        """
        started = time.perf_counter()
        self._fresh = False
        remaining = ref_logprobs.with_references(
            self._database,
            batch.mapped(self.trainer.as_learned),
            needed_by=self.trainer.needs_reference,
            compute=self.trainer.reference_logprobs,
        )
        while any(remaining.values()):
            try:
                result = self.trainer.step(remaining)
            except InvalidRequest as error:
                self._drop(remaining, error)
                continue
            if not result.skipped and not self.trainer.finite():
                self._settle()
                self.restore()
                raise ArithmeticError("the step made weights that are not finite; it was undone")
            metrics.step_seconds.labels(self.model).observe(time.perf_counter() - started)
            if result.reason not in FAULTS:
                self._note(remaining, batch.replayed, result)
            if not result.skipped:
                self.faults.note_success(batch)
            return result
        return StepResult(metrics={}, skipped=True, reason="no_samples")

    def _drop(self, remaining: dict[str, list[Any]], error: InvalidRequest) -> None:
        """Refuse what the trainer named, and drop it from the batch.

        Other members of its group stay if two or more remain. A single one has lost its baseline:
        it waits for a later step.
        """
        refusals: list[Refusal] = []
        for objective, samples in remaining.items():
            for sample in samples:
                ids = ids_of(sample)
                named = [i for i in ids if i == error.param]
                if sample.sample_id == error.param:
                    named = ids
                refusals += [
                    Refusal(sample_id=i, objective=objective, reason=error.message) for i in named
                ]
        if not refusals:
            raise error
        self.refuse(refusals)
        for objective, samples in remaining.items():
            refused = {r.sample_id for r in refusals if r.objective == objective}
            samples[:] = [
                left for s in samples if (left := without_refused(s, refused)) is not None
            ]

    def search_fault(self, batch: Batch, reason: str, too_large: bool = False) -> bool:
        """Look for the sample at fault after a step that failed; return whether one was found.

        `too_large` says that the step ran out of memory.
        """
        refusals = self.faults.note_failure(batch, reason, too_large=too_large)
        if too_large and len(batch) == 1:
            named = ", ".join(f"{objective} {i}" for objective, i in keys_of(batch))
            logger.error("%s: not enough memory for sample %s; it waits", self.model, named)
        self.refuse(refusals)
        return bool(refusals)

    def refuse(self, refusals: Sequence[Refusal]) -> None:
        """Refuse samples for good; the loop sends their dead letters."""
        if not refusals:
            return
        ready.refuse(self._database, refusals)
        self.unreported = True
        for refusal in refusals:
            metrics.samples_refused.labels(refusal.objective).inc()
            logger.warning("sample %s refused: %s", refusal.sample_id, refusal.reason)

    def _note(
        self,
        used: Mapping[str, Sequence[Any]],
        replayed: Mapping[str, Collection[str]],
        result: StepResult,
    ) -> None:
        self.step += 1
        ids = {name: [i for s in group for i in ids_of(s)] for name, group in used.items()}
        again = {name: set(replayed.get(name, ())) for name in ids}
        fresh = {name: [i for i in ids[name] if i not in again[name]] for name in ids}
        replays = {name: [i for i in ids[name] if i in again[name]] for name in ids}
        self.uncommitted.taken.append(
            steps.Step(
                step=self.step,
                samples={name: group for name, group in fresh.items() if group},
                replayed={name: group for name, group in replays.items() if group},
                skipped=result.skipped,
                metrics=result.metrics,
            )
        )
        if result.skipped:
            return
        self.effects.note(
            {n: [s for s in g if s.sample_id not in again[n]] for n, g in used.items()},
            result.logprobs,
        )
        self.unpublished_steps += 1
        self.unpublished_evidence += steps.evidence_of(result.metrics)
        if self.unpublished_since is None:
            self.unpublished_since = self._clock()

    def commit(self) -> bool:
        """Write a checkpoint, then commit the steps taken; return whether there were any."""
        committed = self._settle()
        if self.uncommitted.taken:
            self._begin()
            committed = self._settle()
        return committed

    def begin_commit(self, every_steps: int) -> bool:
        """Commit what is written, then begin a checkpoint if so many steps have none.

        Returns whether any step was committed: those of a checkpoint that is written beside the
        next steps are later. While one is being written no other begins.
        """
        committed = self._settle(wait=False)
        if len(self.uncommitted.taken) >= every_steps and not self.uncommitted.is_writing:
            self._begin()
            committed = self._settle(wait=False) or committed
        return committed

    def _begin(self) -> None:
        name = f"step-{self.step:08d}"
        write = self.trainer.stage_checkpoint({"step": self.step})
        self.uncommitted.begin(name, partial(write, self._checkpoints / name))

    def _settle(self, *, wait: bool = True) -> bool:
        committed = self.uncommitted.settle(wait=wait)
        if committed:
            self._prune()
        return committed

    def _prune(self) -> None:
        known = steps.checkpoints(self._database, self.model)
        wanted = versions.steps_to_keep(self._database, self.model)
        for step, name in known[self._keep_checkpoints :]:
            if step not in wanted:
                shutil.rmtree(self._checkpoints / name, ignore_errors=True)

    def mark_published(self, version: int) -> None:
        """Record that the current weights were saved as `version`."""
        self.parent = version
        self.published_step = self.step
        self.unpublished_steps = 0
        self.unpublished_evidence = 0.0
        self.unpublished_since = None
        self.last_version_time = self._clock()

    def mark_dropped(self) -> None:
        """Record that an unpublished version was dropped: its steps wait for another one."""
        self._find_place()
