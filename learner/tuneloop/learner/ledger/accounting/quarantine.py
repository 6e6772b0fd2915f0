"""Quarantine: a version of the policy is refused for good, and what it learned is put back.

First the versions are marked, in the transaction that also records what serves instead. Later,
between two steps, the uses after the last good version are undone. The ledger always says whether
that is still due, so a crash in between only delays it. A sample that led to several quarantines
is set aside, so that one batch does not spoil one candidate after another.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sqlalchemy import Connection, exists, func, literal, select, update

from tuneloop.learner.ledger.accounting import decisions, steps
from tuneloop.learner.ledger.accounting.versions import GOOD
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.schema import decisions as decisions_table
from tuneloop.learner.ledger.schema import samples, undone_uses, versions
from tuneloop.learner.samples import ModelRole, SampleState
from tuneloop.policies import ReleaseState

Kind: TypeAlias = Literal["quarantine", "rebuild"]
"""Why versions are taken back: they are bad, or a user's data is to be removed from them."""

MARKED = (
    versions.c.model == ModelRole.POLICY,
    versions.c.state == ReleaseState.QUARANTINED.value,
    versions.c.abandoned.is_(False),
)
"""Quarantined, and their steps are not undone yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PutBack:
    """What was put back after a quarantine."""

    good: int
    """The version that learning continues from."""
    samples: int
    set_aside: int


def mark_quarantined(
    connection: Connection,
    first: int,
    last: int,
    *,
    reason: str,
    numbers: Mapping[str, Any],
    actor: str,
    kind: Kind,
    now: float,
) -> None:
    """Quarantine versions `first` to `last` and retire what grew from them, with a decision each.

    Only versions of kind `quarantine` put blame on their samples.
    """
    line = (versions.c.model == ModelRole.POLICY, versions.c.abandoned.is_(False))
    between = versions.c.version.between(first, last)
    refused = connection.execute(
        update(versions)
        .where(*line, between)
        .values(state=ReleaseState.QUARANTINED.value)
        .returning(versions.c.version)
    ).scalars()
    # A version that was put back and then promoted anyway is quarantined a second time.
    connection.execute(
        update(versions)
        .where(versions.c.model == ModelRole.POLICY, versions.c.version == last)
        .values(state=ReleaseState.QUARANTINED.value)
    )
    for version in sorted({*refused, last}):
        decisions.record_decision_in(
            connection,
            version=version,
            kind=kind,
            outcome="quarantined",
            numbers=numbers,
            reason=reason,
            actor=actor,
            now=now,
        )
    grown = connection.execute(
        update(versions)
        .where(
            *line,
            versions.c.version > last,
            versions.c.state.in_((ReleaseState.CANDIDATE.value, ReleaseState.CANARY.value)),
        )
        .values(state=ReleaseState.RETIRED.value)
        .returning(versions.c.version)
    ).scalars()
    for version in sorted(grown):
        decisions.record_decision_in(
            connection,
            version=version,
            kind=kind,
            outcome="retired",
            reason=f"grew from version {last}, which is quarantined",
            actor=actor,
            now=now,
        )


def put_back(database: Database, now: float, set_aside_after: int) -> PutBack | None:
    """Undo the steps after the last good version; return None if no quarantine asks for it."""
    if not _is_due(database):
        return None
    with database.write() as connection:
        first = connection.execute(select(func.min(versions.c.version)).where(*MARKED)).scalar_one()
        good = connection.execute(
            select(versions.c.version, versions.c.last_step)
            .where(
                versions.c.model == ModelRole.POLICY,
                versions.c.version < first,
                versions.c.abandoned.is_(False),
                GOOD,
            )
            .order_by(versions.c.version.desc())
            .limit(1)
        ).one_or_none()
        step = 0 if good is None else good.last_step
        _remember(connection, step)
        undone = steps.undo_after(connection, ModelRole.POLICY, step, now)
        spoilt = _blamed_often(connection, undone, set_aside_after)
        for sample_id, objective in spoilt:
            _set_aside(connection, sample_id, objective)
    return PutBack(
        good=0 if good is None else good.version, samples=len(undone), set_aside=len(spoilt)
    )


def _is_due(database: Database) -> bool:
    with database.read() as connection:
        return connection.execute(select(literal(1)).where(*MARKED).limit(1)).first() is not None


def _remember(connection: Connection, step: int) -> None:
    """Record which version had learned from what; blame what the last refused one had used."""
    refused = exists().where(
        decisions_table.c.model == versions.c.model,
        decisions_table.c.version == versions.c.version,
        decisions_table.c.kind == "quarantine",
        decisions_table.c.outcome == "quarantined",
    )
    blamed_until = connection.execute(
        select(func.coalesce(func.max(versions.c.last_step), 0)).where(*MARKED, refused)
    ).scalar_one()
    steps.remember_uses(connection, ModelRole.POLICY, step, blamed_until)


def _blamed_often(
    connection: Connection, undone: Sequence[tuple[str, str]], often: int
) -> Collection[tuple[str, str]]:
    """Return the samples that led to a quarantine `often` times; replays do not count."""
    same = (undone_uses.c.sample_id, undone_uses.c.objective)
    query = (
        select(*same)
        .where(undone_uses.c.blamed.is_(True), undone_uses.c.epoch == 0)
        .group_by(*same)
        .having(func.count() >= often)
    )
    counted = {(row.sample_id, row.objective) for row in connection.execute(query)}
    return sorted(counted & set(undone))


def _set_aside(connection: Connection, sample_id: str, objective: str) -> None:
    led_to = select(undone_uses.c.version).where(
        undone_uses.c.sample_id == sample_id,
        undone_uses.c.objective == objective,
        undone_uses.c.blamed.is_(True),
    )
    named = ", ".join(str(v) for v in sorted(set(connection.execute(led_to).scalars())))
    connection.execute(
        update(samples)
        .where(
            samples.c.sample_id == sample_id,
            samples.c.objective == objective,
            samples.c.state == SampleState.OPEN,
        )
        .values(
            state=SampleState.SET_ASIDE,
            note=f"versions {named} learned from it and were quarantined",
        )
    )
