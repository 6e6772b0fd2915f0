"""Decisions about versions: what was decided, by whom, and all the figures it was decided on.

Rows are only ever added, so that the history of a version can be read from top to bottom.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

from sqlalchemy import Connection, func, select

from tuneloop.learner import metrics
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.rows import moment
from tuneloop.learner.ledger.schema import decisions
from tuneloop.learner.samples import ModelRole

Kind: TypeAlias = Literal[
    "publish", "gate", "canary", "promote", "roll back", "quarantine", "rebuild", "pause", "resume"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision."""

    number: int
    """Counts up over all models."""
    model: str
    """`policy` or `reward_model`."""
    version: int
    kind: Kind
    outcome: str
    """Its result: `pass`, `fail`, `hold`, `promote`, `roll_back`, `superseded`, …"""
    numbers: Mapping[str, Any]
    """Everything that was measured, in JSON types."""
    reason: str
    """In words, for people."""
    actor: str
    """`gate`, `canary`, `learner`, or the name of a person's key."""
    time: datetime


def record_decision(
    database: Database,
    *,
    model: str = ModelRole.POLICY,
    version: int,
    kind: Kind,
    outcome: str,
    numbers: Mapping[str, Any] | None = None,
    reason: str = "",
    actor: str,
    now: float,
) -> None:
    """Record a decision in its own transaction."""
    with database.write() as connection:
        record_decision_in(
            connection,
            model=model,
            version=version,
            kind=kind,
            outcome=outcome,
            numbers=numbers,
            reason=reason,
            actor=actor,
            now=now,
        )


def record_decision_in(
    connection: Connection,
    *,
    model: str = ModelRole.POLICY,
    version: int,
    kind: Kind,
    outcome: str,
    numbers: Mapping[str, Any] | None = None,
    reason: str = "",
    actor: str,
    now: float,
) -> None:
    """Record a decision in the transaction that carries it out."""
    metrics.release_decisions.labels(kind, outcome).inc()
    connection.execute(
        decisions.insert().values(
            model=model,
            version=version,
            kind=kind,
            outcome=outcome,
            numbers=json.dumps(_plain(numbers or {}), allow_nan=False),
            reason=reason,
            actor=actor,
            time=now,
        )
    )


def of_version(database: Database, model: str, version: int) -> list[Decision]:
    """Return the decisions about a version, oldest first."""
    query = (
        select(decisions)
        .where(decisions.c.model == model, decisions.c.version == version)
        .order_by(decisions.c.number)
    )
    with database.read() as connection:
        return [_decision(row) for row in connection.execute(query)]


def newest(database: Database, model: str, kind: Kind, limit: int) -> list[Decision]:
    """Return the latest decisions of a kind, newest first."""
    query = (
        select(decisions)
        .where(decisions.c.model == model, decisions.c.kind == kind)
        .order_by(decisions.c.number.desc())
        .limit(limit)
    )
    with database.read() as connection:
        return [_decision(row) for row in connection.execute(query)]


def count(database: Database, model: str, kind: Kind, outcomes: Sequence[str]) -> int:
    """Return how many decisions of a kind had one of these outcomes."""
    query = select(func.count()).where(
        decisions.c.model == model, decisions.c.kind == kind, decisions.c.outcome.in_(outcomes)
    )
    with database.read() as connection:
        return int(connection.execute(query).scalar_one())


def _decision(row: Any) -> Decision:
    return Decision(
        number=row.number,
        model=row.model,
        version=row.version,
        kind=row.kind,
        outcome=row.outcome,
        numbers=json.loads(row.numbers),
        reason=row.reason,
        actor=row.actor,
        time=moment(row.time),
    )


def _plain(value: Any) -> Any:
    """Return the value with null in place of NaN and infinity, which JSON lacks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
