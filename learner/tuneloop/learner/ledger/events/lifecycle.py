"""How feedback ends: its user retracts it, or it gets too old to learn from.

Its open samples end with it, and so do the pairs of siblings it was half of. What steps have used
stays on record and is not used again: retracted feedback never, expired feedback not as a replay
(see `queue.replay`).
"""

from collections.abc import Collection, Sequence

from sqlalchemy import Connection, exists, func, not_, or_, select, update

from tuneloop.feedback import FeedbackKind, FeedbackStatus, Retraction
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events.sample_rules import LEARNED_FROM, OF_FOLLOW_UP
from tuneloop.learner.ledger.events.verdict_rules import settle_siblings, settle_votes
from tuneloop.learner.ledger.queue.ready import ALL_RECORDED, with_rollouts
from tuneloop.learner.ledger.rows import insert_new
from tuneloop.learner.ledger.schema import feedback, forgotten, retractions, rollouts, samples
from tuneloop.learner.samples import SampleState

ROWS_AT_ONCE = 500


def record_retractions(
    database: Database, events: Sequence[tuple[Retraction, int]], now: float
) -> int:
    """Record retractions, given with their sequence in the stream; return how many were new.

    A retraction that comes before its feedback still wins: see `recorder.record_feedback`.
    """
    rows = [
        {
            "feedback_id": event.feedback_id,
            "user_hash": event.user_hash,
            "retracted_time": event.retracted_time.timestamp(),
            "sequence": sequence,
        }
        for event, sequence in events
    ]
    with database.write() as connection:
        new = insert_new(connection, retractions, rows, ("feedback_id",))
        ids = [row["feedback_id"] for row in new]
        connection.execute(
            update(feedback)
            .where(feedback.c.feedback_id.in_(ids))
            .values(status=FeedbackStatus.RETRACTED.value)
        )
        connection.execute(
            update(samples)
            .where(
                samples.c.feedback_id.in_(ids),
                samples.c.state.in_(
                    (
                        SampleState.OPEN,
                        SampleState.USED,
                        SampleState.SUPERSEDED,
                        SampleState.EXPIRED,
                    )
                ),
            )
            .values(state=SampleState.RETRACTED, current=False)
        )
        settle_feedback(connection, ids, now)
    return len(new)


def retracted(connection: Connection, feedback_ids: Sequence[str]) -> set[str]:
    """Return which of these are retracted."""
    query = select(retractions.c.feedback_id).where(retractions.c.feedback_id.in_(feedback_ids))
    return set(connection.execute(query).scalars())


def expire_feedback(
    database: Database, now: float, *, max_age: float | None, rollout_wait: float | None
) -> int:
    """Expire feedback that is too old or waited too long for its rollout; return how much.

    `max_age` counts from when feedback was accepted, `rollout_wait` from when the ledger recorded
    it, both in seconds; None is no limit. A rollout that comes later does not revive it. Comments
    and metrics that are not learned from do not expire.
    """
    ended: set[str] = set()
    with database.write() as connection:
        if max_age is not None:
            ended |= _expire_old(connection, now - max_age)
        if rollout_wait is not None:
            ended |= _expire_waiting(connection, now - rollout_wait)
        ids = sorted(ended)
        for start in range(0, len(ids), ROWS_AT_ONCE):
            settle_feedback(connection, ids[start : start + ROWS_AT_ONCE], now)
    return len(ended)


def _expire_old(connection: Connection, accepted_before: float) -> set[str]:
    ended = connection.execute(
        update(feedback)
        .where(
            feedback.c.accepted_time < accepted_before,
            feedback.c.status == FeedbackStatus.ACCEPTED.value,
            LEARNED_FROM,
        )
        .values(status=FeedbackStatus.EXPIRED.value)
        .returning(feedback.c.feedback_id)
    )
    ids = set(ended.scalars())
    connection.execute(
        update(samples)
        .where(
            samples.c.accepted_time < accepted_before,
            samples.c.state == SampleState.OPEN,
            or_(samples.c.feedback_id.is_not(None), OF_FOLLOW_UP),
        )
        .values(state=SampleState.EXPIRED, current=False)
    )
    return ids


def _expire_waiting(connection: Connection, recorded_before: float) -> set[str]:
    """Expire samples that wait, and feedback of which only such samples are left."""
    waiting = with_rollouts(samples.c.sample_id, samples.c.objective, samples.c.feedback_id).where(
        samples.c.recorded_time < recorded_before,
        samples.c.state == SampleState.OPEN,
        samples.c.feedback_id.is_not(None),
        not_(ALL_RECORDED),
    )
    rows = connection.execute(waiting).all()
    for row in rows:
        connection.execute(
            update(samples)
            .where(samples.c.sample_id == row.sample_id, samples.c.objective == row.objective)
            .values(state=SampleState.EXPIRED, current=False)
        )
    ids = sorted({row.feedback_id for row in rows})
    other = samples.alias()
    for start in range(0, len(ids), ROWS_AT_ONCE):
        connection.execute(
            update(feedback)
            .where(
                feedback.c.feedback_id.in_(ids[start : start + ROWS_AT_ONCE]),
                not_(
                    exists().where(
                        other.c.feedback_id == feedback.c.feedback_id,
                        other.c.state != SampleState.EXPIRED,
                    )
                ),
            )
            .values(status=FeedbackStatus.EXPIRED.value)
        )
    return set(ids)


def settle_feedback(connection: Connection, feedback_ids: Sequence[str], now: float) -> None:
    """Apply the rules of votes and of siblings to everything this feedback affects."""
    spoken = select(samples.c.objective, samples.c.topic, samples.c.user_hash).where(
        samples.c.feedback_id.in_(feedback_ids), samples.c.topic != ""
    )
    for row in sorted(set(map(tuple, connection.execute(spoken)))):
        settle_votes(connection, *row)
    groups = (
        select(rollouts.c.group_id)
        .join(feedback, feedback.c.completion_id == rollouts.c.completion_id)
        .where(
            feedback.c.feedback_id.in_(feedback_ids),
            feedback.c.kind == FeedbackKind.THUMB.value,
        )
    )
    for group_id in sorted(set(connection.execute(groups).scalars())):
        settle_siblings(connection, group_id, now)


def forgotten_times(connection: Connection, user_hashes: Collection[str]) -> dict[str, float]:
    """Return when each of these users was last forgotten, for those who were."""
    query = (
        select(forgotten.c.user_hash, func.max(forgotten.c.time))
        .where(forgotten.c.user_hash.in_(user_hashes))
        .group_by(forgotten.c.user_hash)
    )
    return {row[0]: row[1] for row in connection.execute(query)}


def forgotten_sessions(
    connection: Connection, sessions: Collection[tuple[str, str]]
) -> dict[tuple[str, str], float]:
    """Return when each of these sessions, by tenant and id, was last forgotten, likewise."""
    if not sessions:
        return {}
    query = (
        select(forgotten.c.tenant, forgotten.c.session_id, func.max(forgotten.c.time))
        .where(forgotten.c.session_id.in_({session_id for _, session_id in sessions}))
        .group_by(forgotten.c.tenant, forgotten.c.session_id)
    )
    return {(row[0], row[1]): row[2] for row in connection.execute(query)}
