"""Where a version comes from: its ancestors, and the samples and feedback it learned from."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select

from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.rows import moment
from tuneloop.learner.ledger.schema import feedback, samples, undone_uses, uses, versions

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
