"""Feedback and retractions on the stream: stored before they are acknowledged, each id once.

An id chosen by the client is unique without a database: the event is published on the condition
that no event of the stream has that id yet. A retraction is one more event with the id, so that the
condition fails for good: a retracted id is spent.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from tuneloop import tracing, wire
from tuneloop.bus import Bus, StoredEvent, subjects
from tuneloop.errors import Conflict
from tuneloop.feedback import Feedback, FeedbackStatus, Retraction
from tuneloop.gateway.errors import FeedbackNotFound, FeedbackRetracted


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFeedback:
    """Feedback as the stream holds it."""

    feedback: Feedback
    status: FeedbackStatus
    """From the stream `accepted` or `retracted`: expiry is the ledger's."""


async def store(bus: Bus, feedback: Feedback, *, chosen_by_client: bool) -> bool:
    """Store the event durably; return False if the same feedback was stored before.

    Raises `Conflict` if its id has other feedback, `FeedbackRetracted` if that was retracted,
    `Unavailable` if the bus is down.
    """
    subject = subjects.feedback(
        feedback.policy, feedback.kind.value, feedback.user_hash, feedback.feedback_id
    )
    with tracing.span("publish feedback", kind="producer"):
        return await _store(bus, subject, feedback, chosen_by_client=chosen_by_client)


async def _store(bus: Bus, subject: str, feedback: Feedback, *, chosen_by_client: bool) -> bool:
    data = wire.encode_feedback(feedback)
    if not chosen_by_client:
        await bus.publish(subject, data, event_id=feedback.feedback_id)
        return True
    any_with_id = subjects.feedback_with_id(feedback.feedback_id)
    try:
        await bus.publish_first(
            subject, data, event_id=feedback.feedback_id, unique_filter=any_with_id
        )
    except Conflict:
        if is_same_feedback(feedback, await bus.last(any_with_id)):
            return False
        raise Conflict(
            f"feedback {feedback.feedback_id!r} exists with another body", param="id"
        ) from None
    return True


def is_same_feedback(feedback: Feedback, stored: StoredEvent | None) -> bool:
    """Return whether the stored event is this feedback. Raises `FeedbackRetracted`."""
    if stored is None:
        return False
    if subjects.is_retraction(stored.subject):
        raise FeedbackRetracted(
            f"feedback {feedback.feedback_id!r} was retracted; use another id", param="id"
        )
    earlier = wire.decode_feedback(stored.data)
    return replace(earlier, accepted_time=feedback.accepted_time) == feedback


async def find(bus: Bus, feedback_id: str) -> StoredFeedback:
    """Return the feedback with an id. Raises `FeedbackNotFound`."""
    stored = await bus.last(subjects.feedback_with_id(feedback_id))
    status = FeedbackStatus.ACCEPTED
    if stored is not None and subjects.is_retraction(stored.subject):
        status = FeedbackStatus.RETRACTED
        taken = wire.decode_retraction(stored.data)
        subject = subjects.feedback(taken.policy, taken.kind.value, taken.user_hash, feedback_id)
        stored = await bus.last(subject)
    if stored is None:
        raise FeedbackNotFound(f"no feedback {feedback_id!r}", param="id")
    return StoredFeedback(feedback=wire.decode_feedback(stored.data), status=status)


async def retract(bus: Bus, found: StoredFeedback, *, api_key_id: str) -> bool:
    """Retract feedback durably; return False if it already was. Raises `Unavailable`."""
    if found.status is FeedbackStatus.RETRACTED:
        return False
    feedback = found.feedback
    feedback_id = feedback.feedback_id
    retraction = Retraction(
        feedback_id=feedback_id,
        kind=feedback.kind,
        policy=feedback.policy,
        tenant=feedback.tenant,
        user_hash=feedback.user_hash,
        retracted_time=datetime.now(UTC),
        api_key_id=api_key_id,
    )
    receipt = await bus.publish(
        subjects.feedback_retracted(feedback.policy, feedback.user_hash, feedback_id),
        wire.encode_retraction(retraction),
        event_id=wire.retraction_event_id(feedback_id),
    )
    return not receipt.duplicate
