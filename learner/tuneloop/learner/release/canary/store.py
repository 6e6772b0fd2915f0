"""A canary in the ledger: its state, the state of its version, and what was decided."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from sqlalchemy import ColumnElement, Connection, and_, select

from tuneloop.learner.ledger.accounting import decisions
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.schema import facts, versions
from tuneloop.learner.release.canary.error_rates import ErrorTally
from tuneloop.policies import ReleaseState

Outcome: TypeAlias = Literal["promote", "roll_back", "hold", "stop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryVerdict:
    """How a canary ends."""

    outcome: Outcome
    reason: str
    """In words, for people."""
    numbers: dict[str, Any]


@dataclass(slots=True, kw_only=True)
class CanaryState:
    """A canary from its start until its verdict was carried out."""

    version: int
    share: float
    salt: str
    started: float
    """When it was started: the deadline counts from here."""
    stable: int | None = None
    """What it is compared with; None before it is routed."""
    counted_from: float | None = None
    """When it was in generation's memory: traffic counts from here."""
    errors: ErrorTally = field(default_factory=ErrorTally)
    verdict: CanaryVerdict | None = None
    """Decided, and not carried out yet."""

    def to_json(self) -> str:
        """As the ledger keeps it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "CanaryState":
        """As it was kept."""
        found = json.loads(text)
        found["errors"] = ErrorTally(**found["errors"])
        if found["verdict"] is not None:
            found["verdict"] = CanaryVerdict(**found["verdict"])
        return cls(**found)


ACTOR = "canary"


FACT = "canary"


def load_state(database: Database) -> CanaryState | None:
    """The canary that was running, or None."""
    text = database.fact(FACT)
    return CanaryState.from_json(text) if text else None


def begin_canary(database: Database, state: CanaryState, now: float) -> None:
    """A version is on trial."""
    with database.write() as connection:
        _set_version(connection, state.version, ReleaseState.CANARY)
        _keep(connection, state)
        decisions.record_in(
            connection,
            version=state.version,
            kind="canary",
            outcome="start",
            numbers={"share": state.share},
            reason=f"answers {state.share:.0%} of the users",
            actor=ACTOR,
            now=now,
        )


def save_state(database: Database, state: CanaryState) -> None:
    """What it has seen so far."""
    with database.write() as connection:
        _keep(connection, state)


def save_verdict(database: Database, state: CanaryState, now: float) -> None:
    """Its verdict is in; from here on it is only to be carried out."""
    assert state.verdict is not None
    with database.write() as connection:
        _keep(connection, state)
        _note(connection, state.version, state.verdict, now)


def note_failed_verdict(
    database: Database, version: int, verdict: CanaryVerdict, now: float
) -> None:
    """What became of a verdict that could not be carried out."""
    with database.write() as connection:
        _note(connection, version, verdict, now)


def end_canary(database: Database, version: int) -> None:
    """It is over. A version that nobody else has decided about is retired."""
    with database.write() as connection:
        found = select(versions.c.state).where(_of(version))
        if connection.execute(found).scalar_one() == ReleaseState.CANARY.value:
            # No candidate any more, or it would be tried again; a person may promote it still.
            _set_version(connection, version, ReleaseState.RETIRED)
        connection.execute(facts.delete().where(facts.c.name == FACT))


def _note(connection: Connection, version: int, verdict: CanaryVerdict, now: float) -> None:
    decisions.record_in(
        connection,
        version=version,
        kind="canary",
        outcome=verdict.outcome,
        numbers=verdict.numbers,
        reason=verdict.reason,
        actor=ACTOR,
        now=now,
    )


def _keep(connection: Connection, state: CanaryState) -> None:
    connection.execute(facts.delete().where(facts.c.name == FACT))
    connection.execute(facts.insert().values(name=FACT, value=state.to_json()))


def _set_version(connection: Connection, version: int, state: ReleaseState) -> None:
    connection.execute(versions.update().where(_of(version)).values(state=state.value))


def _of(version: int) -> ColumnElement[bool]:
    return and_(versions.c.model == "policy", versions.c.version == version)
