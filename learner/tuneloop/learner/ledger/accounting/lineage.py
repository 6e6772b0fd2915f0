"""Where a version comes from: its ancestors, and the samples and feedback it learned from."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Integer, func, literal_column, select

from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.rows import moment
from tuneloop.learner.ledger.schema import feedback, samples, undone_uses, uses, versions
from tuneloop.learner.samples import ModelRole
from tuneloop.policies import ReleaseState

same_sample = (samples.c.sample_id == uses.c.sample_id) & (samples.c.objective == uses.c.objective)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One use of one sample."""

    sample_id: str
    objective: str
    step: int
    epoch: int
    feedback_id: str | None = None
    """None for scored rollouts, and for pairs of siblings, which two thumbs make."""
    completion_id: str = ""
    """The chosen one of a pair."""
    rejected_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedFrom:
    """What a range of steps used."""

    samples: dict[str, int]
    """Counts by objective; a sample counts once however often it was replayed."""
    oldest_feedback_time: datetime | None
    newest_feedback_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataCounts:
    """What a version and its ancestors learned from, as far as it was not deleted since."""

    samples: dict[str, int]
    """Counts by objective; a sample counts once however often it was used."""
    feedback: dict[str, int]
    """Counts of the feedback behind them, by kind; scored rollouts have none."""


def ancestors(database: Database, model: str, version: int) -> list[int]:
    """Return the versions it grew from, nearest first, down to 0."""
    with database.read() as connection:
        query = select(versions.c.version, versions.c.parent).where(versions.c.model == model)
        parent_of = {row.version: row.parent for row in connection.execute(query)}
    line: list[int] = []
    while version in parent_of:
        version = parent_of[version]
        line.append(version)
    return line


def distance(database: Database, one: int, other: int) -> int:
    """Return how many versions of the policy lie between two: up to a common ancestor and down."""
    line = [one, *ancestors(database, ModelRole.POLICY, one)]
    up = [other, *ancestors(database, ModelRole.POLICY, other)]
    # Every version descends from 0, so there is a common one.
    return next(steps + line.index(version) for steps, version in enumerate(up) if version in line)


def fresh_versions(database: Database, max_staleness: int) -> frozenset[int]:
    """Return the versions of the policy whose rollouts are recent enough to learn from.

    They are at most `max_staleness` versions from the head, counted along the tree of versions: up
    from the head to the common ancestor, and down to the version that sampled. Their numbers do not
    say that: after a quarantine, learning continues from an old number.

    Versions that serve are always fresh. While newer ones wait for their release, nothing else is
    sampled from; the importance ratios tell how far the policy has moved away from them.
    """
    of_policy = versions.c.model == ModelRole.POLICY
    head = select(func.coalesce(func.max(versions.c.version), 0).label("version")).where(
        of_policy, versions.c.abandoned.is_(False)
    )
    line = head.add_columns(literal_column("0", Integer).label("distance")).cte(
        "line", recursive=True
    )
    line = line.union_all(
        select(versions.c.parent, line.c.distance + 1)
        .join(line, (line.c.version == versions.c.version) & of_policy)
        .where(line.c.distance < max_staleness)
    )
    near = select(line.c.version, line.c.distance).cte("near", recursive=True)
    near = near.union_all(
        select(versions.c.version, near.c.distance + 1)
        .join(near, (near.c.version == versions.c.parent) & of_policy)
        .where(near.c.distance < max_staleness, versions.c.version.not_in(select(line.c.version)))
    )
    served = (ReleaseState.STABLE.value, ReleaseState.CANARY.value)
    serving = select(versions.c.version, versions.c.state).where(
        of_policy, versions.c.state.in_(served)
    )
    with database.read() as connection:
        fresh = set(connection.execute(select(near.c.version)).scalars())
        state_of = {row.version: row.state for row in connection.execute(serving)}
    if ReleaseState.STABLE.value not in state_of.values():
        fresh.add(0)
    return frozenset(fresh | state_of.keys())


def uses_of(database: Database, model: str, version: int) -> list[Use]:
    """Return the samples a version learned from since its parent, even if put back later."""
    about = (samples.c.feedback_id, samples.c.completion_id, samples.c.rejected_id)
    used = (
        select(uses.c.sample_id, uses.c.objective, uses.c.step, uses.c.epoch, *about)
        .join(samples, same_sample)
        .where(uses.c.model == model, uses.c.policy_version == version)
    )
    put_back = (
        select(
            undone_uses.c.sample_id,
            undone_uses.c.objective,
            undone_uses.c.step,
            undone_uses.c.epoch,
            *about,
        )
        .join(
            samples,
            (samples.c.sample_id == undone_uses.c.sample_id)
            & (samples.c.objective == undone_uses.c.objective),
        )
        .where(undone_uses.c.model == model, undone_uses.c.version == version)
    )
    with database.read() as connection:
        rows = [*connection.execute(used), *connection.execute(put_back)]
    found = [Use(**row._asdict()) for row in rows]
    return sorted(found, key=lambda use: (use.step, use.objective, use.sample_id, use.epoch))


def learned_from(database: Database, model: str, up_to_step: int) -> LearnedFrom:
    """Return what the steps up to `up_to_step` used that no version has yet."""
    unpublished = (
        uses.c.model == model,
        uses.c.policy_version.is_(None),
        uses.c.step <= up_to_step,
    )
    by_objective = (
        select(uses.c.objective, func.count(uses.c.sample_id.distinct()))
        .where(*unpublished)
        .group_by(uses.c.objective)
    )
    times = (
        select(func.min(feedback.c.accepted_time), func.max(feedback.c.accepted_time))
        .select_from(uses)
        .join(samples, same_sample)
        .join(feedback, feedback.c.feedback_id == samples.c.feedback_id)
        .where(*unpublished)
    )
    with database.read() as connection:
        amounts = {row[0]: row[1] for row in connection.execute(by_objective)}
        oldest, newest = connection.execute(times).one()
    return LearnedFrom(
        samples=amounts,
        oldest_feedback_time=None if oldest is None else moment(oldest),
        newest_feedback_time=None if newest is None else moment(newest),
    )


def count_data(database: Database, model: str, version: int) -> DataCounts:
    """Count the samples and the feedback that a version and its ancestors learned from."""
    line = [version, *ancestors(database, model, version)]
    used = (
        select(uses.c.sample_id, uses.c.objective)
        .where(uses.c.model == model, uses.c.policy_version.in_(line))
        .union(
            select(undone_uses.c.sample_id, undone_uses.c.objective).where(
                undone_uses.c.model == model, undone_uses.c.version.in_(line)
            )
        )
        .subquery()
    )
    by_objective = select(used.c.objective, func.count()).group_by(used.c.objective)
    by_kind = (
        select(feedback.c.kind, func.count(feedback.c.feedback_id.distinct()))
        .select_from(used)
        .join(
            samples,
            (samples.c.sample_id == used.c.sample_id) & (samples.c.objective == used.c.objective),
        )
        .join(feedback, feedback.c.feedback_id == samples.c.feedback_id)
        .group_by(feedback.c.kind)
    )
    with database.read() as connection:
        return DataCounts(
            samples={row[0]: row[1] for row in connection.execute(by_objective)},
            feedback={row[0]: row[1] for row in connection.execute(by_kind)},
        )


def feedback_times(database: Database, model: str, version: int) -> list[float]:
    """Return when each feedback that a version was the first to use was accepted."""
    query = (
        select(feedback.c.feedback_id, feedback.c.accepted_time)
        .distinct()
        .select_from(uses)
        .join(samples, same_sample)
        .join(feedback, feedback.c.feedback_id == samples.c.feedback_id)
        .where(uses.c.model == model, uses.c.policy_version == version, uses.c.epoch == 0)
    )
    with database.read() as connection:
        return [row.accepted_time for row in connection.execute(query)]
