"""From the streams into the ledger: decode, record in one transaction, then acknowledge.

An event is acknowledged after the ledger has committed it, so it may come again but is never lost;
the ledger's keys give it one effect. An event that cannot be decoded becomes a dead letter at once;
one that cannot be recorded comes again and becomes one after `MAX_DELIVERIES`. While the ledger
itself cannot be written (its disk is full, its server is down) events wait without a limit.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from tuneloop import tracing
from tuneloop.bus import Bus, Consumer, Delivery, Owner
from tuneloop.bus.subjects import (
    FEEDBACK,
    LEARNER,
    ROLLOUTS,
    SIGNALS,
    feedback_of,
    is_retraction,
    rollouts_of,
    signals_of,
)
from tuneloop.bus.subjects import weights_activated as activated_subject
from tuneloop.errors import CorruptData, FailedPrecondition, TuneloopError, Unavailable
from tuneloop.feedback import Feedback, Retraction
from tuneloop.host import steady_time
from tuneloop.learner import metrics, trace_links
from tuneloop.learner.intake.event_recorder import EventRecorder
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events.sample_rules import STANDARD, SampleRules
from tuneloop.rollouts import Rollout, ScoredRollout
from tuneloop.wire import (
    decode_activation,
    decode_feedback,
    decode_retraction,
    decode_rollout_scored,
    decode_rollouts_generated,
    decode_signal,
)

logger = logging.getLogger("tuneloop.learner.intake")

BATCH = 256
MAX_DELIVERIES = 5
ACK_WAIT_SECONDS = 60.0
FETCH_SECONDS = 5.0
RETRY_SECONDS = 2.0

Decode = Callable[[Delivery], Any]
Record = Callable[[Sequence[Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeConsumer:
    """One durable consumer of the learner."""

    name: str
    """The consumer's name; its durable is `learner-<policy>-<name>`."""
    stream: str
    subject: str
    decode: Decode
    """Decodes a delivery; raises `CorruptData`."""
    record: Record
    """Records events in one transaction; blocks."""
    owner: Owner
    """The ledger that they are recorded in."""

    async def open(self, bus: Bus, policy: str) -> Consumer:
        """Open it for its owner. Raises `Unavailable`, and `FailedPrecondition` for another's."""
        return await bus.consume(
            stream=self.stream,
            durable=self._durable(policy),
            subjects=[self.subject],
            ack_wait=ACK_WAIT_SECONDS,
            owner=self.owner,
        )

    def _durable(self, policy: str) -> str:
        return f"learner-{policy}-{self.name}"

    async def run(self, bus: Bus, policy: str, arrived: Callable[[], None]) -> None:
        """Consume until cancelled; `arrived` is called after each batch that was recorded."""
        durable = self._durable(policy)
        while True:
            try:
                consumer = await self.open(bus, policy)
                while True:
                    deliveries = await consumer.fetch(BATCH, FETCH_SECONDS)
                    if deliveries:
                        await self.handle(bus, durable, deliveries)
                        arrived()
                    await self._note_lag(consumer)
            except FailedPrecondition:
                # Another learner took the ledger over, or the events: this one must end.
                raise
            except TuneloopError as error:
                # The bus is down; unacknowledged deliveries come again once it is back.
                logger.warning("%s: %s; trying again", durable, error)
                await asyncio.sleep(RETRY_SECONDS)

    async def handle(self, bus: Bus, durable: str, deliveries: Sequence[Delivery]) -> None:
        """Record deliveries and acknowledge them."""
        started_ns = time.time_ns()
        events: list[tuple[Delivery, Any]] = []
        for delivery in deliveries:
            try:
                events.append((delivery, self.decode(delivery)))
            except CorruptData as error:
                logger.warning("%s: dead letter %d: %s", durable, delivery.sequence, error)
                await bus.dead_letter(delivery, consumer=durable, reason=error.message)
        try:
            await asyncio.to_thread(self.record, [event for _, event in events])
        except Unavailable as error:
            await self._wait_for_the_ledger([delivery for delivery, _ in events], error)
            return
        except SQLAlchemyError as error:
            # After the first line Postgres quotes whole rows.
            problem = str(error).partition("\n")[0]
            logger.error("%s: a batch could not be recorded: %s", durable, problem)
            # One bad event must not block the others.
            for delivery, event in events:
                await self._handle_alone(bus, durable, delivery, event)
            return
        if tracing.is_on():
            trace_links.link_intake((event for _, event in events), started_ns)
        for delivery, _ in events:
            await delivery.ack()

    async def _handle_alone(self, bus: Bus, durable: str, delivery: Delivery, event: Any) -> None:
        try:
            await asyncio.to_thread(self.record, [event])
        except Unavailable as error:
            await self._wait_for_the_ledger([delivery], error)
            return
        except SQLAlchemyError as error:
            metrics.intake_failures.labels(self.name).inc()
            if delivery.deliveries > MAX_DELIVERIES:
                reason = f"could not be recorded: {type(error).__name__}"
                await bus.dead_letter(delivery, consumer=durable, reason=reason)
            else:
                await delivery.nak(RETRY_SECONDS * delivery.deliveries)
            return
        await delivery.ack()

    async def _wait_for_the_ledger(
        self, deliveries: Sequence[Delivery], error: Unavailable
    ) -> None:
        """Send deliveries back. No event is at fault, so none becomes a dead letter."""
        metrics.intake_failures.labels(self.name).inc()
        logger.error("%s wait: %s", self.name, error.message)
        for delivery in deliveries:
            await delivery.nak(RETRY_SECONDS)
        await asyncio.sleep(RETRY_SECONDS)

    async def _note_lag(self, consumer: Consumer) -> None:
        metrics.consumer_lag.labels(self.name).set(await consumer.pending())


def make_consumers(
    database: Database,
    policy: str,
    *,
    rules: SampleRules = STANDARD,
    clock: Callable[[], float] = steady_time,
    instead_of: str = "",
) -> list[IntakeConsumer]:
    """Return the five consumers of the learner of `policy`; see `Owner` for `instead_of`.

    Events are as old as the bus says: which of two verdicts is the last must not depend on the
    clocks of the gateways that took them.
    """
    recording = EventRecorder(database, rules, clock=clock)
    owner = Owner(owner_id=database.own_id(), instead_of=instead_of)
    return _consumers_of(recording, policy, owner)


def _consumers_of(recording: EventRecorder, policy: str, owner: Owner) -> list[IntakeConsumer]:
    consumer = partial(IntakeConsumer, owner=owner)
    return [
        consumer(
            name="rollouts",
            stream=ROLLOUTS,
            subject=rollouts_of(policy, "generated"),
            decode=lambda d: _rollouts(policy, d),
            record=recording.record_rollouts,
        ),
        consumer(
            name="scores",
            stream=ROLLOUTS,
            subject=rollouts_of(policy, "scored"),
            decode=lambda d: _scored(policy, d),
            record=recording.record_scores,
        ),
        consumer(
            name="feedback",
            stream=FEEDBACK,
            subject=feedback_of(policy),
            decode=lambda d: (_of_policy(policy, _feedback_event(d)), d.sequence),
            record=recording.record_feedback,
        ),
        consumer(
            name="signals",
            stream=SIGNALS,
            subject=signals_of(policy),
            decode=lambda d: (
                replace(_of_policy(policy, decode_signal(d.data)), accepted_time=d.stored_time),
                d.sequence,
            ),
            record=recording.record_signals,
        ),
        consumer(
            name="activations",
            stream=LEARNER,
            subject=activated_subject(policy),
            decode=lambda d: _of_policy(policy, decode_activation(d.data)),
            record=recording.record_activations,
        ),
    ]


def _rollouts(policy: str, delivery: Delivery) -> list[Rollout]:
    """Decode the choices of a request; raises `CorruptData`."""
    return [
        replace(_of_policy(policy, rollout), finished_time=delivery.stored_time)
        for rollout in decode_rollouts_generated(delivery.data)
    ]


def _scored(policy: str, delivery: Delivery) -> ScoredRollout:
    """Decode a score; raises `CorruptData`."""
    event: ScoredRollout = _of_policy(policy, decode_rollout_scored(delivery.data))
    return replace(event, scored_time=delivery.stored_time)


def _feedback_event(delivery: Delivery) -> Feedback | Retraction:
    """Decode feedback or a retraction; raises `CorruptData`."""
    if is_retraction(delivery.subject):
        return replace(decode_retraction(delivery.data), retracted_time=delivery.stored_time)
    return replace(decode_feedback(delivery.data), accepted_time=delivery.stored_time)


def _of_policy(policy: str, event: Any) -> Any:
    """Return the event; raise `CorruptData` if its policy is not that of its subject."""
    if event.policy != policy:
        raise CorruptData(f"policy: {event.policy!r} on a subject of {policy!r}", param="policy")
    return event


async def claim_events(bus: Bus, policy: str, consumers: Sequence[IntakeConsumer]) -> None:
    """Open all consumers once, before anything is done in the ledger's name.

    Raises `FailedPrecondition` if the events go to another ledger. While the bus is away nothing is
    said: the consumers ask again.
    """
    with contextlib.suppress(Unavailable):
        for consumer in consumers:
            await consumer.open(bus, policy)


async def run_consumers(
    bus: Bus, policy: str, consumers: Sequence[IntakeConsumer], arrived: Callable[[], None]
) -> None:
    """Run consumers until cancelled; an unexpected failure of one ends all."""
    running: list[Awaitable[None]] = [c.run(bus, policy, arrived) for c in consumers]
    await asyncio.gather(*running)
