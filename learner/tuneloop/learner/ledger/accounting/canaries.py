"""Canaries as the ledger records them: the state of the one on trial, its version, its verdict.

What a canary has seen is kept as text that `release.canary.state` reads and writes.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, select

from tuneloop.learner.ledger.accounting import decisions
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.schema import facts, versions
from tuneloop.learner.samples import ModelRole
from tuneloop.policies import ReleaseState

ACTOR = "canary"
FACT = "canary"


def load_state(database: Database) -> str | None:
    """Return the state of the canary that was running, or None."""
    return database.fact(FACT) or None


def begin_canary(database: Database, version: int, *, share: float, state: str, now: float) -> None:
    """Record that a version is on trial."""
    with database.write() as connection:
        _set_version(connection, version, ReleaseState.CANARY)
        _set_state(connection, state)
        _record(
            connection,
            version,
            outcome="start",
            reason=f"answers {share:.0%} of the users",
            numbers={"share": share},
            now=now,
        )


def save_state(database: Database, state: str) -> None:
    """Save what the canary has seen so far."""
    with database.write() as connection:
        _set_state(connection, state)


def save_verdict(
    database: Database,
    version: int,
    *,
    outcome: str,
    reason: str,
    numbers: Mapping[str, Any],
    state: str,
    now: float,
) -> None:
    """Record the verdict; from here on it only has to be carried out."""
    with database.write() as connection:
        _set_state(connection, state)
        _record(connection, version, outcome=outcome, reason=reason, numbers=numbers, now=now)


def record_failed_verdict(
    database: Database, version: int, *, outcome: str, reason: str, now: float
) -> None:
    """Record what became of a verdict that could not be carried out."""
    with database.write() as connection:
        _record(connection, version, outcome=outcome, reason=reason, numbers={}, now=now)


def end_canary(database: Database, version: int) -> None:
    """End the trial, and retire a version that nobody else has decided about."""
    with database.write() as connection:
        found = select(versions.c.state).where(_is_version(version))
        if connection.execute(found).scalar_one() == ReleaseState.CANARY.value:
            # As a candidate it would be tried again; a person may still promote it.
            _set_version(connection, version, ReleaseState.RETIRED)
        connection.execute(facts.delete().where(facts.c.name == FACT))


def _record(
    connection: Connection,
    version: int,
    *,
    outcome: str,
    reason: str,
    numbers: Mapping[str, Any],
    now: float,
) -> None:
    decisions.record_decision_in(
        connection,
        version=version,
        kind="canary",
        outcome=outcome,
        numbers=numbers,
        reason=reason,
        actor=ACTOR,
        now=now,
    )


def _set_state(connection: Connection, state: str) -> None:
    connection.execute(facts.delete().where(facts.c.name == FACT))
    connection.execute(facts.insert().values(name=FACT, value=state))


def _set_version(connection: Connection, version: int, state: ReleaseState) -> None:
    connection.execute(versions.update().where(_is_version(version)).values(state=state.value))


def _is_version(version: int) -> ColumnElement[bool]:
    return and_(versions.c.model == ModelRole.POLICY, versions.c.version == version)
