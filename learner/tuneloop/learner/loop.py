"""The loop: batch, step, commit, publish, for the policy and for the reward model in turn.

Intake feeds the ledger on its own; what this loop needs from it is only to be woken.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Protocol

from tuneloop import tracing
from tuneloop.bus import Bus
from tuneloop.bus.subjects import learner_step
from tuneloop.errors import TuneloopError
from tuneloop.learner import metrics, trace_links
from tuneloop.learner.batching.batcher import Progress
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.ledger.queue.ready import Refusal
from tuneloop.learner.model_thread import Worker
from tuneloop.learner.release.publisher import Publisher
from tuneloop.learner.trainer.base import StepResult
from tuneloop.learner.training_run import Batch, Trainee, ids_of
from tuneloop.wire import encode_learner_stepped

logger = logging.getLogger("tuneloop.learner.loop")

TICK_SECONDS = 0.5
"""How often time limits (batch wait, publication) are looked at when nothing arrives."""
LONGEST_PAUSE_SECONDS = 60.0
REFUSALS = 64
"""Dead letters sent in one go."""
PAUSED = "paused"
"""Fact of the ledger, so that a pause outlives a restart."""


class Batches(Protocol):
    """Forms the next batch of a trainee, or None while it is too early."""

    def form(self, trainee: Trainee, limit: int | None = None) -> Batch | None:
        """See `tuneloop.learner.batching.batcher`."""
        ...

    def progress(self, trainee: Trainee) -> list[Progress]:
        """How far its next steps are."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often to commit and to publish."""

    publish_every_steps: int
    publish_every_seconds: float
    checkpoint_every_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NextVersion:
    """Steps towards a version."""

    steps_done: int
    steps_wanted: int
    seconds_left: float
    """After which it is published with fewer."""


class Loop:
    """Runs trainees until stopped."""

    def __init__(
        self,
        *,
        trainees: Sequence[tuple[Trainee, Batches]],
        publisher: Publisher,
        database: Database,
        bus: Bus,
        worker: Worker,
        pace: Pace,
        between_turns: Callable[[], None] = lambda: None,
        set_aside_after: int = 2,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Take `between_turns`: what else to do with the models; it blocks in their thread.

        `set_aside_after` is that of `GateSettings`.
        """
        self.trainees = trainees
        self.state = "waiting"
        """`waiting`, `stepping` or `publishing`."""
        self.last_metrics: dict[str, Mapping[str, float]] = {}
        """Figures of the last step by model."""
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
        self._turning = asyncio.Lock()
        metrics.paused.set(self._paused)

    @property
    def paused(self) -> bool:
        """Whether steps are paused; intake and publication of earlier steps go on."""
        return self._paused

    def progress(self) -> list[Progress]:
        """How far the next steps of every trainee are."""
        return [p for trainee, batches in self.trainees for p in batches.progress(trainee)]

    def next_version(self) -> NextVersion | None:
        """How far the policy's next version is; None while no step waits for one."""
        policy = next(trainee for trainee, _ in self.trainees if trainee.model == "policy")
        since = policy.unpublished_since
        if since is None:
            return None
        return NextVersion(
            steps_done=policy.unpublished_steps,
            steps_wanted=self._pace.publish_every_steps,
            seconds_left=max(0.0, since + self._pace.publish_every_seconds - self._clock()),
        )

    def pause(self, paused: bool) -> None:
        """Pause or resume steps, also for after a restart."""
        self._database.set_fact(PAUSED, "yes" if paused else "no")
        self._paused = paused
        metrics.paused.set(paused)
        self.arrived.set()

    async def run(self) -> None:
        """Restore every trainee, then turn for ever."""
        for trainee, _ in self.trainees:
            if await asyncio.to_thread(self._publisher.clean, trainee.model):
                logger.warning("%s: will publish again", trainee.model)
            await self._worker.run(trainee.restore)
            metrics.policy_version.labels(trainee.model).set(trainee.parent)
        while True:
            self.arrived.clear()
            busy = [await self.turn(trainee, batches) for trainee, batches in self.trainees]
            await self._worker.run(self._between_turns)
            if not any(busy):
                await self._wait()

    @asynccontextmanager
    async def standing_still(self) -> AsyncIterator[None]:
        """No turn runs inside, and what was trained before is committed."""
        async with self._turning:
            for trainee, _ in self.trainees:
                await self._commit(trainee)
            yield

    async def publish_soon(self, model: str) -> None:
        """Make a version of the steps that have none yet. Call it while `standing_still`."""
        for trainee, _ in self.trainees:
            if trainee.model == model and trainee.unpublished_steps:
                figures = self.last_metrics.get(model, {})
                await self._worker.run(self._publisher.save, trainee, figures)

    async def rewind(self) -> int:
        """Undo what a quarantine asks for; the version the policy goes on from.

        Call it while `standing_still`.
        """
        policy = next(trainee for trainee, _ in self.trainees if trainee.model == "policy")
        await self._worker.run(policy.rewind, self._set_aside_after)
        return policy.parent

    async def turn(self, trainee: Trainee, batches: Batches) -> bool:
        """One turn of one trainee; whether it took a step."""
        async with self._turning:
            return await self._turn(trainee, batches)

    async def _turn(self, trainee: Trainee, batches: Batches) -> bool:
        if trainee.model == "policy":
            await self._worker.run(trainee.rewind, self._set_aside_after)
        batch = await self._next_batch(trainee, batches)
        if batch is not None:
            await self._step(trainee, batch)
        if len(trainee.uncommitted.taken) >= self._pace.checkpoint_every_steps:
            await self._commit(trainee)
        await self._publish(trainee)
        if trainee.unreported:
            await self._bury(trainee)
        self.state = "waiting"
        return batch is not None

    async def _next_batch(self, trainee: Trainee, batches: Batches) -> Batch | None:
        if self._paused or time.monotonic() < self._not_before.get(trainee.model, 0.0):
            return None
        # After a step that raised, ever smaller batches find the sample it fails on.
        limit = None if trainee.failures == 0 else max(1, 16 >> trainee.failures)
        return await self._worker.run(batches.form, trainee, limit)

    async def _step(self, trainee: Trainee, batch: Batch) -> None:
        self.state = "stepping"
        links = trace_links.links_of(batch) if tracing.on() else ()
        attributes: tracing.Attributes = {
            "tuneloop.model": trainee.model,
            "tuneloop.samples": len(batch),
        }
        try:
            with tracing.span("step", links=links, attributes=attributes):
                result = await self._worker.run(trainee.train, batch)
                trace_links.stepped(trainee.model)
        except (TuneloopError, RuntimeError, ValueError, ArithmeticError) as error:
            await self._failed(trainee, batch, error)
            return
        trainee.failures = 0
        self._report(trainee, batch, result)

    async def _failed(self, trainee: Trainee, batch: Batch, error: Exception) -> None:
        metrics.steps_failed.labels(trainee.model).inc()
        logger.error("%s: a step failed", trainee.model, exc_info=error)
        if len(batch) == 1 and trainee.failures > 0:
            refusals = [
                Refusal(sample_id=i, objective=objective, reason=f"step failed: {error}")
                for objective, group in batch.samples.items()
                for sample in group
                for i in ids_of(sample)
            ]
            await self._worker.run(trainee.refuse, refusals)
            trainee.failures = 0
            return
        pause = min(2.0**trainee.failures, LONGEST_PAUSE_SECONDS)
        trainee.failures += 1
        self._not_before[trainee.model] = time.monotonic() + pause

    def _report(self, trainee: Trainee, batch: Batch, result: StepResult) -> None:
        self.last_metrics[trainee.model] = result.metrics
        metrics.steps.labels(trainee.model).inc()
        if result.skipped:
            metrics.steps_skipped.labels(trainee.model, result.reason).inc()
            logger.warning("%s: step %d skipped: %s", trainee.model, trainee.step, result.reason)
        for name, value in result.metrics.items():
            metrics.step_metric.labels(trainee.model, name).set(value)
            if trainee.model == "policy" and name in metrics.BY_NAME:
                metrics.BY_NAME[name].set(value)
        metrics.loss.labels(trainee.model).set(result.metrics.get("loss", 0.0))
        norm = result.metrics.get("gradient_norm", 0.0)
        metrics.gradient_norm.labels(trainee.model).set(norm)
        sizes = ", ".join(f"{len(group)} {name}" for name, group in batch.samples.items())
        loss = result.metrics.get("loss", float("nan"))
        logger.info("%s: step %d on %s, loss %.4f", trainee.model, trainee.step, sizes, loss)

    async def _commit(self, trainee: Trainee) -> None:
        if not trainee.uncommitted.taken:
            return
        await self._worker.run(trainee.commit)
        if trainee.model == "policy":
            await self._announce_step(trainee)

    async def _announce_step(self, trainee: Trainee) -> None:
        """Tell whoever listens; nothing depends on it, so a bus that is down is only logged."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        figures = self.last_metrics.get(trainee.model, {})
        data = encode_learner_stepped(trainee.policy, trainee.step, figures, now)
        event_id = f"step-{trainee.policy}-{trainee.step}"
        try:
            await self._bus.publish(learner_step(trainee.policy), data, event_id=event_id)
        except TuneloopError as error:
            logger.info("step %d was not announced: %s", trainee.step, error)

    async def _publish(self, trainee: Trainee) -> None:
        if self._version_due(trainee):
            self.state = "publishing"
            await self._commit(trainee)
            figures = self.last_metrics.get(trainee.model, {})
            *links, last = trace_links.steps_of(trainee.model) or ("",)
            with tracing.span("make version", parent=last, links=links):
                version = await self._worker.run(self._publisher.save, trainee, figures)
                trace_links.made(trainee.model, version)
        await self._publisher.push(trainee)

    def _version_due(self, trainee: Trainee) -> bool:
        if trainee.unpublished_since is None:
            return False
        waited = self._clock() - trainee.unpublished_since
        return (
            trainee.unpublished_steps >= self._pace.publish_every_steps
            or waited >= self._pace.publish_every_seconds
        )

    async def _bury(self, trainee: Trainee) -> None:
        """Send dead letters of refused samples; those a bus that is down misses go out later."""
        consumer = f"learner-{trainee.policy}-samples"
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
        trainee.unreported = False

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(TICK_SECONDS):
                await self.arrived.wait()
        except TimeoutError:
            return

    async def drain(self) -> None:
        """Commit what was trained, so that a stop loses no work. Call after `run` was cancelled."""
        for trainee, _ in self.trainees:
            await self._worker.run(trainee.commit)
