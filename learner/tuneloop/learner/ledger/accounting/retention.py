"""Delete old rollouts that nobody judged, and old signals, without losing who learned from what.

A rollout that a judgement speaks of is training data and stays. One that no step used is deleted,
with its scores. One that a policy-gradient step used is emptied: its row says whose it was and
which version learned from it, but texts and tokens are gone, and it is never trained on again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, exists, func, not_, or_, select, update

from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events.follow_up_rules import delete_follow_ups
from tuneloop.learner.ledger.events.sample_rules import OF_FOLLOW_UP
from tuneloop.learner.ledger.events.signal_rules import expire_signals
from tuneloop.learner.ledger.schema import (
    feedback,
    rankings,
    rollouts,
    samples,
    scores,
    signals,
    undone_uses,
    uses,
)
from tuneloop.learner.samples import SampleState

ROWS_AT_ONCE = 500
EMPTY: dict[str, Any] = {
    "messages": "[]",
    "prompt_text": "",
    "completion_text": "",
    "reasoning_text": "",
    "reasoning_tokens": 0,
    "prompt_tokens": b"",
    "completion_tokens": b"",
    "generation_logprobs": b"",
    "columns": "{}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedRollouts:
    """How many rollouts were deleted, and how many emptied."""

    deleted: int = 0
    emptied: int = 0


def prune_rollouts(database: Database, before: float, most: int | None) -> PrunedRollouts:
    """Prune what finished before a time, and the oldest beyond `most` that are not emptied.

    A few hundred rows are a transaction, so that others can write between.
    """
    if most is not None:
        before = max(before, _time_of_oldest(database, most))
    with database.write() as connection:
        expire_signals(connection, before)
    deleted = emptied = 0
    old = (rollouts.c.finished_time < before, rollouts.c.completion_tokens != b"")
    query = select(rollouts.c.completion_id).where(*old, not_(IS_JUDGED)).limit(ROWS_AT_ONCE)
    while True:
        with database.read() as connection:
            chosen = list(connection.execute(query).scalars())
        with database.write() as connection:
            # Asked again: a judgement may have come meanwhile.
            rows = connection.execute(
                select(rollouts.c.completion_id, WAS_USED.label("used")).where(
                    rollouts.c.completion_id.in_(chosen), not_(IS_JUDGED)
                )
            ).all()
            used = [row.completion_id for row in rows if row.used]
            _empty(connection, used)
            unused = [row.completion_id for row in rows if not row.used]
            for table in (samples, scores, signals, rollouts):
                connection.execute(delete(table).where(table.c.completion_id.in_(unused)))
            delete_follow_ups(connection, [*used, *unused])
        deleted += len(unused)
        emptied += len(used)
        if len(chosen) < ROWS_AT_ONCE:
            return PrunedRollouts(deleted=deleted, emptied=emptied)


def _empty(connection: Connection, used: Sequence[str]) -> None:
    connection.execute(
        update(samples)
        .where(samples.c.completion_id.in_(used))
        .values(state=SampleState.EXPIRED, current=False)
    )
    connection.execute(update(rollouts).where(rollouts.c.completion_id.in_(used)).values(EMPTY))


def _time_of_oldest(database: Database, most: int) -> float:
    """Return when the oldest rollout finished of the `most` newest that nobody judged."""
    query = (
        select(rollouts.c.finished_time)
        .where(rollouts.c.completion_tokens != b"", not_(IS_JUDGED))
        .order_by(rollouts.c.finished_time.desc())
        .limit(most)
        .subquery()
    )
    with database.read() as connection:
        count, oldest = connection.execute(
            select(func.count(), func.min(query.c.finished_time))
        ).one()
    return oldest if count == most else float("-inf")


def _named(column: ColumnElement[Any], *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(column == rollouts.c.completion_id, *conditions)


def _has_use(table: Any) -> ColumnElement[bool]:
    return exists().where(
        table.c.sample_id == samples.c.sample_id, table.c.objective == samples.c.objective
    )


IS_JUDGED = or_(
    rollouts.c.source == "import",
    _named(feedback.c.completion_id),
    _named(rankings.c.completion_id),
    _named(
        samples.c.rejected_id,
        or_(not_(OF_FOLLOW_UP), samples.c.state != SampleState.EXPIRED),
    ),
    _named(samples.c.completion_id, samples.c.feedback_id.is_not(None)),
)
WAS_USED = _named(
    samples.c.completion_id,
    or_(samples.c.state == SampleState.USED, _has_use(uses), _has_use(undone_uses)),
)
