"""Scores every generated rollout, from a durable work queue that replicas of this service share.

A rollout is acknowledged after its score was stored, so a crash costs one more scoring at most; the
event id names completion and reward model version, so storing it again adds nothing.
"""

import asyncio
import contextlib
import functools
import itertools
import logging
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime

from tuneloop import tracing, wire
from tuneloop.bus import Bus, Consumer, Delivery, subjects
from tuneloop.errors import InvalidRequest, TuneloopError, Unavailable
from tuneloop.reward import metrics
from tuneloop.reward.scorer import input_from_rollout
from tuneloop.reward.scoring import ScoredBatch, Scoring
from tuneloop.rollouts import FinishReason, Rollout, Score, ScoredRollout
from tuneloop.telemetry import quote

logger = logging.getLogger("tuneloop.reward")

DURABLE = "reward"
GENERATED = "tuneloop.v1.*.rollout.generated.*"
ACK_WAIT = 30.0
MAX_DELIVERIES = 5
RETRY_DELAY = 2.0
"""Seconds before the second attempt; each later one waits twice as long."""
IDLE_SECONDS = 1.0
"""Longest wait for the first rollout of a batch, and so for a stop to be noticed."""
LAG_SECONDS = 5.0
"""Between two reads of the consumer's lag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedRollouts:
    """A delivery and the rollouts it holds that can be scored."""

    delivery: Delivery
    rollouts: Sequence[Rollout]


class RolloutConsumer:
    """Takes rollouts in batches, scores them, publishes the scores."""

    def __init__(
        self,
        *,
        bus: Bus,
        scoring: Scoring,
        executor: Executor,
        batch_size: int,
        batch_wait_seconds: float,
    ) -> None:
        self._bus = bus
        self._scoring = scoring
        self._executor = executor
        self._batch_size = batch_size
        self._batch_wait_seconds = batch_wait_seconds
        self._stopping = False
        self._lag_time = 0.0

    def stop(self) -> None:
        """Let `run` end after the current batch."""
        self._stopping = True

    async def run(self) -> None:
        """Score until stopped; wait while the bus is unavailable."""
        away = False
        while not self._stopping:
            try:
                consumer = await self._bus.consume(
                    stream=subjects.ROLLOUTS,
                    durable=DURABLE,
                    subjects=[GENERATED],
                    ack_wait=ACK_WAIT,
                )
                away = False
                while not self._stopping:
                    await self.handle(await self.gather(consumer))
                    await self._observe_lag(consumer)
            except Unavailable as error:
                if not away:
                    logger.warning("rollouts wait to be scored: %s", error.message)
                away = True
                await asyncio.sleep(IDLE_SECONDS)

    async def gather(self, consumer: Consumer) -> list[Delivery]:
        """Fetch a batch: a full one, or what came within `batch_wait_seconds` of the first."""
        batch = await consumer.fetch(self._batch_size, IDLE_SECONDS)
        deadline = time.monotonic() + self._batch_wait_seconds
        while batch and len(batch) < self._batch_size:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            batch += await consumer.fetch(self._batch_size - len(batch), remaining)
        return batch

    async def handle(self, deliveries: Sequence[Delivery]) -> None:
        """Score a batch and publish it; each delivery is acknowledged, retried or a dead letter."""
        items = [item for d in deliveries if (item := await self._take(d)) is not None]
        if not items:
            return
        candidates = [input_from_rollout(r) for item in items for r in item.rollouts]
        started_ns = time.time_ns()
        loop = asyncio.get_running_loop()
        async with keep_in_progress(items):
            try:
                score = functools.partial(self._scoring.score, candidates, learn=True)
                scored = await loop.run_in_executor(self._executor, score)
            except Exception:
                # A bug, or no memory: the rollouts are retried, and end as dead letters.
                logger.exception("could not score %d rollouts", len(candidates))
                await asyncio.gather(*(self._retry(item) for item in items))
                return
        ends = itertools.accumulate(len(item.rollouts) for item in items)
        await asyncio.gather(
            *(
                self._settle(item, end - len(item.rollouts), scored, started_ns)
                for item, end in zip(items, ends, strict=True)
            )
        )

    async def _settle(
        self, item: QueuedRollouts, first_row: int, batch: ScoredBatch, started_ns: int
    ) -> None:
        """Publish the scores of a delivery, then acknowledge it.

        One that a scorer failed on is retried, in the end as a dead letter; the scores of its other
        rollouts are stored once all the same.
        """
        rows = list(enumerate(item.rollouts, first_row))
        failed = [(rollout, batch.failures[row]) for row, rollout in rows if row in batch.failures]
        stored = await asyncio.gather(
            *(
                self._publish(rollout, batch.scores[row], batch, started_ns)
                for row, rollout in rows
                if row not in batch.failures
            )
        )
        if not all(stored):
            await self._retry(item)
            return
        if not failed:
            with contextlib.suppress(Unavailable):
                await item.delivery.ack()
        elif item.delivery.deliveries < MAX_DELIVERIES:
            await self._retry(item)
        else:
            [(rollout, problem), *_] = failed
            where = f"completion {rollout.completion_id}"
            gist = f"{where}: a scorer failed"
            await self._bury(item.delivery, f"{where}: {problem}", gist)

    async def _take(self, delivery: Delivery) -> QueuedRollouts | None:
        """Return the rollouts of a delivery, or None after settling one with nothing to score."""
        try:
            if delivery.deliveries > MAX_DELIVERIES:
                await self._bury(delivery, f"failed {delivery.deliveries - 1} times")
                return None
            rollouts = wire.decode_rollouts_generated(delivery.data)
            # Their policy and user must be valid in the subject of the score.
            subjects.rollout_scored(rollouts[0].policy, rollouts[0].user_hash)
        except InvalidRequest as error:
            await self._bury(delivery, error.message)
            return None
        # A partial answer says nothing about the policy.
        whole = [r for r in rollouts if r.finish_reason is not FinishReason.ABORT]
        metrics.rollouts.labels("aborted").inc(len(rollouts) - len(whole))
        if not whole:
            await delivery.ack()
            return None
        return QueuedRollouts(delivery=delivery, rollouts=whole)

    async def _bury(self, delivery: Delivery, reason: str, gist: str = "") -> None:
        """Store a dead letter; `gist` is what to log if the reason may quote the completion."""
        logger.error(
            "rollout %d of the stream: %s", delivery.sequence, quote(reason, gist or reason)
        )
        await self._bus.dead_letter(delivery, consumer=DURABLE, reason=reason)
        metrics.rollouts.labels("dead").inc()

    async def _publish(
        self, rollout: Rollout, score: Score, batch: ScoredBatch, started_ns: int
    ) -> bool:
        """Store a score; return whether that was done."""
        attributes: dict[str, str | float] = {
            "gen_ai.response.id": rollout.completion_id,
            "gen_ai.evaluation.name": "reward",
        }
        if score.reward is not None:
            attributes["gen_ai.evaluation.score.value"] = score.reward
        traceparent = tracing.emit(
            "score",
            kind="consumer",
            parent=rollout.traceparent,
            started_ns=started_ns,
            attributes=attributes,
        )
        scored = ScoredRollout(
            completion_id=rollout.completion_id,
            policy=rollout.policy,
            score=score,
            reward_model_version=batch.reward_model_version,
            scored_time=datetime.now(UTC),
            traceparent=traceparent,
        )
        try:
            await self._bus.publish(
                subjects.rollout_scored(rollout.policy, rollout.user_hash),
                wire.encode_rollout_scored(scored),
                event_id=wire.score_event_id(scored),
            )
        except TuneloopError as error:
            logger.warning("score of %s not stored yet: %s", rollout.completion_id, error.message)
            return False
        metrics.rollouts.labels("scored").inc()
        return True

    async def _retry(self, item: QueuedRollouts) -> None:
        metrics.rollouts.labels("retried").inc(len(item.rollouts))
        # A scorer may depend on something that is down for a while.
        delay = RETRY_DELAY * 2 ** (item.delivery.deliveries - 1)
        # While the bus is down it is redelivered by itself, after ACK_WAIT.
        with contextlib.suppress(Unavailable):
            await item.delivery.nak(delay)

    async def _observe_lag(self, consumer: Consumer) -> None:
        if time.monotonic() - self._lag_time > LAG_SECONDS:
            self._lag_time = time.monotonic()
            metrics.consumer_lag.set(await consumer.pending())


@contextlib.asynccontextmanager
async def keep_in_progress(items: Sequence[QueuedRollouts]) -> AsyncIterator[None]:
    """Keep deliveries from being redelivered while they are worked on."""

    async def beat() -> None:
        while True:
            await asyncio.sleep(ACK_WAIT / 3)
            with contextlib.suppress(Unavailable):
                await asyncio.gather(*(item.delivery.in_progress() for item in items))

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
