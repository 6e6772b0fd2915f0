"""Versions in the ledger: allocated, published in stages, released; and what each learned from."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, select, update

from tuneloop.errors import NotFound
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.rows import moment
from tuneloop.learner.ledger.schema import effects, promotions, uses, versions
from tuneloop.learner.samples import ModelRole
from tuneloop.policies import ReleaseState, WeightsReference

STAGES = ("saved", "stored", "announced", "released")
GOOD = and_(
    versions.c.state != ReleaseState.QUARANTINED.value,
    exists().where(
        promotions.c.model == versions.c.model, promotions.c.version == versions.c.version
    ),
)
"""The version has been stable and was not taken back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A version as the ledger knows it."""

    model: str
    """`policy` or `reward_model`."""
    version: int
    policy: str
    parent: int
    state: ReleaseState
    stage: str
    """How far its publication got: one of `STAGES`."""
    first_step: int
    last_step: int
    manifest: str
    """JSON."""
    uri: str
    manifest_sha256: str
    created_time: datetime
    activated_time: datetime | None
    settings: str = "{}"
    """The settings it was trained with, as JSON."""

    @property
    def reference(self) -> WeightsReference:
        """Where its weights are; only meaningful once stored."""
        return WeightsReference(
            policy=self.policy,
            policy_version=self.version,
            uri=self.uri,
            manifest_sha256=self.manifest_sha256,
        )


def add_version(
    database: Database,
    *,
    model: str,
    version: int,
    policy: str,
    parent: int,
    first_step: int,
    last_step: int,
    manifest: str,
    created_time: datetime,
    settings: str = "{}",
) -> None:
    """Record a version whose weights are saved, and give it the uses no version has yet."""
    with database.write() as connection:
        connection.execute(
            versions.insert().values(
                model=model,
                version=version,
                policy=policy,
                parent=parent,
                state=ReleaseState.CANDIDATE.value,
                stage="saved",
                first_step=first_step,
                last_step=last_step,
                manifest=manifest,
                uri="",
                manifest_sha256="",
                created_time=created_time.timestamp(),
                activated_time=None,
                abandoned=False,
                settings=settings,
            )
        )
        connection.execute(
            update(uses)
            .where(
                uses.c.model == model,
                uses.c.policy_version.is_(None),
                uses.c.step <= last_step,
            )
            .values(policy_version=version)
        )


def drop_version(database: Database, model: str, version: int) -> None:
    """Delete a version that was never published; its uses wait for another one."""
    with database.write() as connection:
        connection.execute(
            update(uses)
            .where(uses.c.model == model, uses.c.policy_version == version)
            .values(policy_version=None)
        )
        if model == ModelRole.POLICY:
            connection.execute(delete(effects).where(effects.c.policy_version == version))
        connection.execute(
            delete(versions).where(versions.c.model == model, versions.c.version == version)
        )


def mark_stored(
    database: Database, model: str, version: int, reference: WeightsReference, manifest: str
) -> None:
    """Record that the weight store holds the version."""
    _set(
        database,
        model,
        version,
        stage="stored",
        uri=reference.uri,
        manifest_sha256=reference.manifest_sha256,
        manifest=manifest,
    )


def mark_stage(database: Database, model: str, version: int, stage: str) -> None:
    """Record that the version's publication reached `stage`."""
    _set(database, model, version, stage=stage)


def _set(database: Database, model: str, version: int, **values: Any) -> None:
    with database.write() as connection:
        connection.execute(
            update(versions)
            .where(versions.c.model == model, versions.c.version == version)
            .values(**values)
        )


def newest_version(database: Database, model: str) -> int:
    """Return the newest version's number; 0 before the first."""
    query = select(func.max(versions.c.version)).where(versions.c.model == model)
    with database.read() as connection:
        return connection.execute(query).scalar_one() or 0


def newest_time(database: Database, model: str) -> float | None:
    """Return when the newest version was made; None before the first."""
    query = select(func.max(versions.c.created_time)).where(versions.c.model == model)
    with database.read() as connection:
        newest: float | None = connection.execute(query).scalar_one()
    return newest


def head(database: Database, model: str) -> Version | None:
    """Return the newest version whose steps were not rolled back: the next one grows from it."""
    query = (
        select(versions)
        .where(versions.c.model == model, versions.c.abandoned.is_(False))
        .order_by(versions.c.version.desc())
        .limit(1)
    )
    return _first(database, query)


def get_version(database: Database, model: str, version: int) -> Version:
    """Return a version; raises `NotFound`."""
    query = select(versions).where(versions.c.model == model, versions.c.version == version)
    found = _first(database, query)
    if found is None:
        raise NotFound(f"no version {version}", param="policy_version")
    return found


def stable_version(database: Database, model: str) -> int | None:
    """Return the stable version; None while that is version 0."""
    query = select(versions.c.version).where(
        versions.c.model == model, versions.c.state == ReleaseState.STABLE.value
    )
    with database.read() as connection:
        return connection.execute(query).scalar_one_or_none()


def good_before(database: Database, version: int) -> int:
    """Return the newest version of the policy below `version` that may be stable again.

    Its weights are still there. 0 is the base model, which always may.
    """
    query = select(func.max(versions.c.version)).where(
        versions.c.model == ModelRole.POLICY,
        versions.c.version < version,
        versions.c.uri != "",
        GOOD,
    )
    with database.read() as connection:
        return connection.execute(query).scalar_one() or 0


def candidates(database: Database) -> list[Version]:
    """Return the published candidates of the policy, newest first."""
    query = select(versions).where(
        versions.c.model == ModelRole.POLICY,
        versions.c.state == ReleaseState.CANDIDATE.value,
        versions.c.stage == "released",
        versions.c.abandoned.is_(False),
    )
    return _all(database, query.order_by(versions.c.version.desc()))


def steps_to_keep(database: Database, model: str) -> set[int]:
    """Return the steps whose checkpoints a roll-back may need.

    Those of the two newest good versions and of the two newest undecided ones.
    """
    undecided = versions.c.state.in_((ReleaseState.CANDIDATE.value, ReleaseState.CANARY.value))
    queries = [_two_newest(versions.c.last_step, model, kind) for kind in (GOOD, undecided)]
    return _values(database, queries)


def versions_to_keep(database: Database, model: str) -> set[int]:
    """Return the versions whose weights may be needed.

    What serves or is tried, what waits for publication, and the two newest of those that may be
    rolled back to and of those that nobody has decided about.
    """
    serving = (ReleaseState.STABLE.value, ReleaseState.CANARY.value)
    always = or_(versions.c.state.in_(serving), versions.c.stage != "released")
    undecided = versions.c.state == ReleaseState.CANDIDATE.value
    queries = [
        select(versions.c.version).where(versions.c.model == model, always),
        *(_two_newest(versions.c.version, model, kind) for kind in (GOOD, undecided)),
    ]
    return _values(database, queries)


def _two_newest(column: ColumnElement[int], model: str, kind: ColumnElement[bool]) -> Any:
    """Select a column of the two newest versions of a kind whose steps were not rolled back."""
    lasting = (versions.c.model == model, versions.c.abandoned.is_(False))
    return select(column).where(*lasting, kind).order_by(versions.c.version.desc()).limit(2)


def _values(database: Database, queries: Sequence[Any]) -> set[int]:
    with database.read() as connection:
        return {value for query in queries for value in connection.execute(query).scalars()}


def unfinished(database: Database, model: str) -> list[Version]:
    """Return the versions whose publication is unfinished, oldest first."""
    query = (
        select(versions)
        .where(versions.c.model == model, versions.c.stage != "released")
        .order_by(versions.c.version)
    )
    return _all(database, query)


def list_versions(
    database: Database, model: str, *, limit: int, before: int | None = None
) -> list[Version]:
    """Return stored versions below `before`, newest first."""
    query = select(versions).where(versions.c.model == model, versions.c.stage != "saved")
    if before is not None:
        query = query.where(versions.c.version < before)
    return _all(database, query.order_by(versions.c.version.desc()).limit(limit))


def with_weights(database: Database, model: str) -> list[Version]:
    """Return the versions that the weight store holds, newest first."""
    query = select(versions).where(versions.c.model == model, versions.c.uri != "")
    return _all(database, query.order_by(versions.c.version.desc()))


def all_versions(database: Database, model: str) -> list[Version]:
    """Return every version, oldest first."""
    return _all(
        database, select(versions).where(versions.c.model == model).order_by(versions.c.version)
    )


def mark_place(database: Database, model: str, version: int, uri: str) -> None:
    """Record that the version's folder was moved; empty: that its weights were deleted."""
    _set(database, model, version, uri=uri)


def _all(database: Database, query: Any) -> list[Version]:
    with database.read() as connection:
        return [_version(row) for row in connection.execute(query)]


def _first(database: Database, query: Any) -> Version | None:
    found: Sequence[Version] = _all(database, query)
    return found[0] if found else None


def _version(row: Any) -> Version:
    return Version(
        model=row.model,
        version=row.version,
        policy=row.policy,
        parent=row.parent,
        state=ReleaseState(row.state),
        stage=row.stage,
        first_step=row.first_step,
        last_step=row.last_step,
        manifest=row.manifest,
        uri=row.uri,
        manifest_sha256=row.manifest_sha256,
        created_time=moment(row.created_time),
        activated_time=None if row.activated_time is None else moment(row.activated_time),
        settings=row.settings,
    )
