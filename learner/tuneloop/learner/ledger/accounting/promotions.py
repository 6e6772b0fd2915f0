"""Which version serves, as the ledger records it: promoted, rolled back to, or superseded.

Each function here is one transaction, so the state of the versions, the history of promotions and
the decisions never tell different stories.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sqlalchemy import Connection, update

from tuneloop.learner.ledger.accounting import decisions, quarantine
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.schema import promotions, versions
from tuneloop.learner.samples import ModelRole
from tuneloop.policies import ReleaseState

PromotionAction: TypeAlias = Literal["publish", "promote", "roll back"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineRange:
    """Versions of the policy to quarantine, and why."""

    first: int
    last: int
    reason: str
    numbers: Mapping[str, Any]
    actor: str
    kind: quarantine.Kind


def record_promotion(
    database: Database,
    model: str,
    version: int,
    *,
    previous: int,
    action: PromotionAction,
    actor: str,
    now: float,
    quarantined: QuarantineRange | None = None,
) -> None:
    """Record that `version` serves instead of `previous`, and quarantine what it replaces."""
    with database.write() as connection:
        set_stable(
            connection,
            model,
            version,
            previous=previous,
            action=action,
            actor=actor,
            now=now,
        )
        decisions.record_decision_in(
            connection,
            model=model,
            version=version,
            kind=action,
            outcome="roll_back" if action == "roll back" else "promote",
            numbers={"previous": previous},
            reason=f"serves instead of version {previous}",
            actor=actor,
            now=now,
        )
        if quarantined is not None:
            _mark(connection, quarantined, now)


def quarantine_versions(database: Database, quarantined: QuarantineRange, now: float) -> None:
    """Quarantine versions that do not serve."""
    with database.write() as connection:
        _mark(connection, quarantined, now)


def supersede(database: Database, version: int, by: int, actor: str, now: float) -> None:
    """Retire a candidate that was not decided about when a newer one came."""
    with database.write() as connection:
        connection.execute(
            update(versions)
            .where(versions.c.model == ModelRole.POLICY, versions.c.version == version)
            .values(state=ReleaseState.RETIRED.value)
        )
        decisions.record_decision_in(
            connection,
            version=version,
            kind="gate",
            outcome="superseded",
            reason=f"version {by} came before it was decided about",
            actor=actor,
            now=now,
        )


def set_stable(
    connection: Connection,
    model: str,
    version: int,
    *,
    previous: int,
    action: str,
    actor: str,
    now: float,
) -> None:
    """Make `version` the stable one instead of `previous`, and add it to the history."""
    connection.execute(
        update(versions)
        .where(versions.c.model == model, versions.c.state == ReleaseState.STABLE.value)
        .values(state=ReleaseState.RETIRED.value)
    )
    connection.execute(
        update(versions)
        .where(versions.c.model == model, versions.c.version == version)
        .values(state=ReleaseState.STABLE.value)
    )
    connection.execute(
        promotions.insert().values(
            model=model,
            version=version,
            previous=previous,
            action=action,
            actor=actor,
            time=now,
        )
    )


def _mark(connection: Connection, quarantined: QuarantineRange, now: float) -> None:
    quarantine.mark_quarantined(
        connection,
        quarantined.first,
        quarantined.last,
        reason=quarantined.reason,
        numbers=quarantined.numbers,
        actor=quarantined.actor,
        kind=quarantined.kind,
        now=now,
    )
