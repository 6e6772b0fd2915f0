"""The loop: batch, step, commit, publish, for the policy and for the reward model in turn.

Intake writes to the ledger by itself; it only has to wake this loop.
"""

import asyncio
import json
import logging
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial

from tuneloop import tracing
from tuneloop.backoff import Backoff
from tuneloop.bus import Bus
from tuneloop.bus.subjects import learner_step
from tuneloop.errors import TuneloopError, Unavailable
from tuneloop.host import steady_time
from tuneloop.learner import metrics, trace_links
from tuneloop.learner.batching.batch import Batch, Batcher, BatchProgress
from tuneloop.learner.fault_search import FAULTS
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.model_thread import ModelThread
from tuneloop.learner.models.memory import is_out_of_memory
from tuneloop.learner.release.publisher import Publisher
from tuneloop.learner.samples import ModelRole
from tuneloop.learner.schedule import LoopSchedule, NextVersion
from tuneloop.learner.trainer.base import StepResult
from tuneloop.learner.training_run import TrainingRun
from tuneloop.wire import encode_learner_stepped

logger = logging.getLogger("tuneloop.learner")

TICK_SECONDS = 0.5
"""How often time limits (batch wait, publication) are checked when nothing arrives."""
FIRST_PAUSE_SECONDS = 1.0
"""After a step that failed."""
LONGEST_PAUSE_SECONDS = 60.0
AWAY_SECONDS = 5.0
"""Between turns while the ledger cannot be reached."""
REFUSALS = 64
"""The most dead letters read at once."""
PAUSED = "paused"
"""The ledger's fact of a pause, which outlives a restart."""


class Loop:
    """Runs training runs until stopped."""

    def __init__(
        self,
        *,
        training_runs: Sequence[tuple[TrainingRun, Batcher]],
        publisher: Publisher,
        database: Database,
        bus: Bus,
        worker: ModelThread,
        pace: LoopSchedule,
        between_turns: Callable[[], None] = lambda: None,
        set_aside_after: int = 2,
        clock: Callable[[], float] = steady_time,
    ) -> None:
        """`between_turns` does other work with the models, blocking in their thread.

        `set_aside_after` is that of `GateSettings`.
        """
        self.training_runs = training_runs
        self.state = "waiting"
        """`waiting`, `stepping` or `publishing`."""
        self.last_metrics: dict[str, Mapping[str, float]] = {}
        """The metrics of the last step by model."""
        self.arrived = asyncio.Event()
        self._publisher = publisher
        self._database = database
        self._bus = bus
        self._worker = worker
        self._pace = pace
        self._between_turns = between_turns
        self._set_aside_after = set_aside_after
        self._clock = clock
        self._paused = database.fact(PAUSED) == "yes"
        self._not_before: dict[str, float] = {}
        self._backoffs = {
            training_run.model: Backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
            for training_run, _ in training_runs
        }
        self._turning = asyncio.Lock()
        metrics.paused.set(self._paused)

    @property
    def paused(self) -> bool:
        """Whether steps are paused; intake and publication of earlier steps continue."""
        return self._paused

    def progress(self) -> list[BatchProgress]:
        """Return how far the next steps of every training run are."""
        return [
            p
            for training_run, batcher in self.training_runs
            for p in batcher.progress(training_run)
        ]

    def next_version(self) -> NextVersion | None:
        """Return how far the policy's next version is; None while no step waits for one."""
        policy = next(
            training_run
            for training_run, _ in self.training_runs
            if training_run.model == ModelRole.POLICY
        )
        return self._pace.next_version(policy, self._clock())

    def pause(self, paused: bool) -> None:
        """Pause or resume steps; this outlives a restart."""
        self._database.set_fact(PAUSED, "yes" if paused else "no")
        self._paused = paused
        metrics.paused.set(paused)
        self.arrived.set()

    async def run(self) -> None:
        """Restore every training run, then take turns until cancelled.

        While the ledger's server is away, what was trained waits in memory.
        """
        for training_run, _ in self.training_runs:
            if await asyncio.to_thread(self._publisher.drop_unfinished, training_run.model):
                logger.warning("%s: will publish again", training_run.model)
            await self._worker.run(training_run.restore)
            metrics.policy_version.labels(training_run.model).set(training_run.parent)
        while True:
            self.arrived.clear()
            try:
                busy = [
                    await self.turn(training_run, batcher)
                    for training_run, batcher in self.training_runs
                ]
                await self._worker.run(self._between_turns)
            except Unavailable as error:
                logger.warning("the learner waits: %s", error)
                await asyncio.sleep(AWAY_SECONDS)
                continue
            if not any(busy):
                await self._wait()

    @asynccontextmanager
    async def paused_turns(self) -> AsyncIterator[None]:
        """Commit what was trained, and run no turn inside the block."""
        async with self._turning:
            for training_run, _ in self.training_runs:
                await self._commit(training_run, training_run.commit)
            yield

    async def publish_soon(self, model: str) -> None:
        """Make a version of the steps that have none yet. Call this inside `paused_turns`."""
        for training_run, _ in self.training_runs:
            if training_run.model == model and training_run.unpublished_steps:
                figures = self.last_metrics.get(model, {})
                await self._worker.run(self._publisher.save_version, training_run, figures)

    async def rewind(self) -> int:
        """Undo what a quarantine asks for; return the version the policy continues from.

        Call this inside `paused_turns`.
        """
        policy = next(
            training_run
            for training_run, _ in self.training_runs
            if training_run.model == ModelRole.POLICY
        )
        await self._worker.run(policy.rewind, self._set_aside_after)
        return policy.parent

    async def turn(self, training_run: TrainingRun, batcher: Batcher) -> bool:
        """Run one turn of one training run; return whether it took a step."""
        async with self._turning:
            return await self._turn(training_run, batcher)

    async def _turn(self, training_run: TrainingRun, batcher: Batcher) -> bool:
        if training_run.model == ModelRole.POLICY:
            await self._worker.run(training_run.rewind, self._set_aside_after)
        batch = await self._next_batch(training_run, batcher)
        if batch is not None:
            await self._step(training_run, batch)
        every = self._pace.checkpoint_every_steps
        await self._commit(training_run, partial(training_run.begin_commit, every))
        await self._publish(training_run)
        if training_run.unreported:
            await self._send_dead_letters(training_run)
        self.state = "waiting"
        return batch is not None

    async def _next_batch(self, training_run: TrainingRun, batcher: Batcher) -> Batch | None:
        if self._paused or time.monotonic() < self._not_before.get(training_run.model, 0.0):
            return None
        return await self._worker.run(training_run.next_batch, batcher)

    async def _step(self, training_run: TrainingRun, batch: Batch) -> None:
        self.state = "stepping"
        links = trace_links.links_of_batch(batch) if tracing.is_on() else ()
        attributes: tracing.Attributes = {
            "tuneloop.model": training_run.model,
            "tuneloop.samples": len(batch),
        }
        try:
            with tracing.span("step", links=links, attributes=attributes):
                result = await self._worker.run(training_run.train, batch)
                trace_links.note_step(training_run.model)
        except Unavailable:
            # The ledger is away: the samples are not at fault.
            raise
        except (TuneloopError, RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
            await self._handle_failure(training_run, batch, error)
            return
        self._report_step(training_run, batch, result)
        if result.reason in FAULTS:
            reason = f"step skipped: {result.reason}"
            await self._worker.run(training_run.search_fault, batch, reason)
        else:
            self._backoffs[training_run.model].reset()

    async def _handle_failure(
        self, training_run: TrainingRun, batch: Batch, error: Exception
    ) -> None:
        metrics.steps_failed.labels(training_run.model).inc()
        logger.error("%s: a step failed", training_run.model, exc_info=error)
        # The frames hold the tensors of the step.
        traceback.clear_frames(error.__traceback__)
        too_large = is_out_of_memory(error)
        reason = f"step failed: {error}"
        found = await self._worker.run(training_run.search_fault, batch, reason, too_large)
        if found:
            self._backoffs[training_run.model].reset()
        elif not too_large:
            pause = self._backoffs[training_run.model].next_delay()
            self._not_before[training_run.model] = time.monotonic() + pause

    def _report_step(self, training_run: TrainingRun, batch: Batch, result: StepResult) -> None:
        self.last_metrics[training_run.model] = result.metrics
        metrics.steps.labels(training_run.model).inc()
        metrics.token_budget.labels(training_run.model).set(training_run.trainer.token_budget)
        if result.skipped:
            metrics.steps_skipped.labels(training_run.model, result.reason).inc()
            logger.warning(
                "%s: step %d skipped: %s", training_run.model, training_run.step, result.reason
            )
        for name, value in result.metrics.items():
            metrics.step_metric.labels(training_run.model, name).set(value)
            if training_run.model == ModelRole.POLICY and name in metrics.BY_NAME:
                metrics.BY_NAME[name].set(value)
        metrics.loss.labels(training_run.model).set(result.metrics.get("loss", 0.0))
        norm = result.metrics.get("gradient_norm", 0.0)
        metrics.gradient_norm.labels(training_run.model).set(norm)
        sizes = ", ".join(f"{len(group)} {name}" for name, group in batch.samples.items())
        loss = result.metrics.get("loss", float("nan"))
        logger.info(
            "%s: step %d on %s, loss %.4f", training_run.model, training_run.step, sizes, loss
        )

    async def _commit(self, training_run: TrainingRun, commit: Callable[[], bool]) -> None:
        if await self._worker.run(commit) and training_run.model == ModelRole.POLICY:
            await self._announce_step(training_run)

    async def _announce_step(self, training_run: TrainingRun) -> None:
        """Announce a step. Nothing depends on it, so a bus that is down is only logged."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        figures = self.last_metrics.get(training_run.model, {})
        data = encode_learner_stepped(training_run.policy, training_run.step, figures, now)
        event_id = f"step-{training_run.policy}-{training_run.step}"
        try:
            await self._bus.publish(learner_step(training_run.policy), data, event_id=event_id)
        except TuneloopError as error:
            logger.info("step %d was not announced: %s", training_run.step, error)

    async def _publish(self, training_run: TrainingRun) -> None:
        following = self._pace.next_version(training_run, self._clock())
        if following is not None and following.due:
            self.state = "publishing"
            await self._commit(training_run, partial(training_run.begin_commit, 1))
            is_writing = training_run.uncommitted.is_writing
            figures = self.last_metrics.get(training_run.model, {})
            *links, last = trace_links.steps_of(training_run.model) or ("",)
            with tracing.span("make version", parent=last, links=links):
                version = await self._worker.run(
                    self._publisher.save_version, training_run, figures
                )
                trace_links.note_version(training_run.model, version)
            if is_writing and training_run.model == ModelRole.POLICY:
                await self._announce_step(training_run)
        await self._publisher.publish_pending(training_run)

    async def _send_dead_letters(self, training_run: TrainingRun) -> None:
        """Send dead letters of refused samples; while the bus is down they wait."""
        consumer = f"learner-{training_run.policy}-samples"
        while refused := await self._worker.run(ready.unreported, self._database, REFUSALS):
            for refusal in refused:
                name = f"{refusal.objective}-{refusal.sample_id}"
                letter = asdict(refusal)
                user_hash = letter.pop("user_hash")
                try:
                    await self._bus.bury(
                        json.dumps(letter).encode(),
                        consumer=consumer,
                        origin=name,
                        reason=refusal.reason,
                        event_id=f"{consumer}-{name}",
                        user_hash=user_hash,
                    )
                except TuneloopError as error:
                    logger.info("a dead letter waits for the bus: %s", error)
                    return
                await self._worker.run(ready.mark_reported, self._database, refusal)
        training_run.unreported = False

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(TICK_SECONDS):
                await self.arrived.wait()
        except TimeoutError:
            return

    async def drain(self) -> None:
        """Commit what was trained, so that a stop loses no work; call this after `run` ended."""
        for training_run, _ in self.training_runs:
            await self._worker.run(training_run.commit)
