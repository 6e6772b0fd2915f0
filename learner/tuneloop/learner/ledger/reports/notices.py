"""Notices: what webhooks tell of versions and alarms, in order, after a position in the ledger.

Nothing is queued: the decisions and the alarms that the ledger keeps anyway are read from where a
receiver is. So a notice exists as soon as what it tells is committed, and a receiver that is away
costs nothing.
"""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

from sqlalchemy import and_, func, or_, select

from tuneloop.api.webhooks import AlarmEvent, VersionChange, VersionEvent, WebhookEvent
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.rows import moment
from tuneloop.learner.ledger.schema import alarms, decisions, facts
from tuneloop.learner.samples import ModelRole

FACT = "webhook "
"""Begins the names of the facts that keep positions."""

SERVES = and_(decisions.c.kind.in_(("publish", "promote")), decisions.c.outcome == "promote")
TOLD = (
    decisions.c.model == ModelRole.POLICY,
    or_(SERVES, decisions.c.kind == "roll back", decisions.c.outcome == "quarantined"),
)
EXAMINERS = ("gate", "canary")
"""Kinds of decisions that say why their actor promoted a version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """What a receiver was told."""

    decision: int = 0
    """Number of the last decision."""
    alarm: int = 0
    """Number of the last alarm that was raised."""
    raised: tuple[int, ...] = ()
    """Numbers of alarms it was told of, and not of their end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One thing to tell."""

    id: str
    """The same at each attempt, and of nothing else."""
    time: float
    """When it happened, in seconds since the epoch."""
    event: WebhookEvent
    after: Position
    """Where a receiver is once it was told."""


_Found: TypeAlias = tuple[float, str, WebhookEvent, Position]


def next_notice(database: Database, policy: str, position: Position) -> Notice | None:
    """Return the oldest notice after a position; None if there is none."""
    with database.read() as connection:
        found = [
            *_decided(connection, policy, position),
            *_raised(connection, policy, position),
            *_resolved(connection, policy, position),
        ]
    if not found:
        return None
    time, name, event, after = min(found, key=lambda one: one[0])
    # A ledger restored from a backup gives numbers again, at other times.
    unique = f"{database.own_id()[:12]}_{name}_{round(time * 1000)}"
    return Notice(id=unique, time=time, event=event, after=after)


def newest_position(database: Database) -> Position:
    """Return the position after all that has happened so far."""
    with database.read() as connection:
        numbers = (
            connection.execute(select(func.coalesce(func.max(table.c.number), 0))).scalar_one()
            for table in (decisions, alarms)
        )
        return Position(decision=next(numbers), alarm=next(numbers))


def load_position(database: Database, receiver: str) -> Position | None:
    """Return where a receiver is; None if it is new."""
    found = database.fact(FACT + receiver)
    if found is None:
        return None
    saved = json.loads(found)
    return Position(**saved | {"raised": tuple(saved["raised"])})


def save_position(database: Database, receiver: str, position: Position) -> None:
    """Save where a receiver is."""
    database.set_fact(FACT + receiver, json.dumps(asdict(position)))


def forget_receivers(database: Database, *, but: list[str]) -> None:
    """Drop the positions of receivers that are not told any more."""
    kept = [FACT + receiver for receiver in but]
    with database.write() as connection:
        connection.execute(
            facts.delete().where(facts.c.name.startswith(FACT), facts.c.name.not_in(kept))
        )


def _decided(connection: Any, policy: str, position: Position) -> list[_Found]:
    query = (
        select(decisions)
        .where(*TOLD, decisions.c.number > position.decision)
        .order_by(decisions.c.number)
        .limit(1)
    )
    return [
        (
            row.time,
            f"decision_{row.number}",
            _version_event(policy, row, _reason(connection, row)),
            replace(position, decision=row.number),
        )
        for row in connection.execute(query)
    ]


def _version_event(policy: str, row: Any, reason: str) -> VersionEvent:
    data = VersionChange(
        policy=policy, policy_version=row.version, reason=reason, decided_by=row.actor
    )
    if row.outcome == "quarantined":
        return {"type": "version.quarantined", "timestamp": _text(row.time), "data": data}
    data["previous_version"] = json.loads(row.numbers)["previous"]
    if row.kind == "roll back":
        return {"type": "version.rolled_back", "timestamp": _text(row.time), "data": data}
    return {"type": "version.promoted", "timestamp": _text(row.time), "data": data}


def _reason(connection: Any, row: Any) -> str:
    """Return the reason of a decision; of what gate or canary promoted that of their verdict."""
    if row.kind == "promote" and row.actor in EXAMINERS:
        verdict = (
            select(decisions.c.reason)
            .where(
                decisions.c.model == row.model,
                decisions.c.version == row.version,
                decisions.c.kind == row.actor,
                decisions.c.number < row.number,
            )
            .order_by(decisions.c.number.desc())
            .limit(1)
        )
        found: str | None = connection.execute(verdict).scalar_one_or_none()
        return found or str(row.reason)
    return str(row.reason)


def _raised(connection: Any, policy: str, position: Position) -> list[_Found]:
    query = (
        select(alarms).where(alarms.c.number > position.alarm).order_by(alarms.c.number).limit(1)
    )
    return [
        (
            row.raised_time,
            f"alarm_{row.number}",
            _alarm_event(policy, row, ended=False),
            replace(position, alarm=row.number, raised=(*position.raised, row.number)),
        )
        for row in connection.execute(query)
    ]


def _resolved(connection: Any, policy: str, position: Position) -> list[_Found]:
    query = (
        select(alarms)
        .where(alarms.c.number.in_(position.raised), alarms.c.cleared_time.is_not(None))
        .order_by(alarms.c.cleared_time, alarms.c.number)
        .limit(1)
    )
    return [
        (
            row.cleared_time,
            f"alarm_{row.number}_resolved",
            _alarm_event(policy, row, ended=True),
            replace(position, raised=tuple(n for n in position.raised if n != row.number)),
        )
        for row in connection.execute(query)
    ]


def _alarm_event(policy: str, row: Any, *, ended: bool) -> AlarmEvent:
    return {
        "type": "alarm.resolved" if ended else "alarm.raised",
        "timestamp": _text(row.cleared_time if ended else row.raised_time),
        "data": {
            "policy": policy,
            "alarm": row.name,
            "raised_time": _text(row.raised_time),
            "numbers": json.loads(row.numbers),
        },
    }


def _text(time: float) -> str:
    return moment(time).isoformat()
