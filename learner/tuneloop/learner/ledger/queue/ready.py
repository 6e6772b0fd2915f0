"""Samples that can be trained on now: their event and every rollout it refers to are recorded.

Rollouts that were sampled to evaluate a version, and answers to prompts that are held out for that,
are never part of a sample.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, FromClause, and_, case, func, not_, or_, select, update

from tuneloop.errors import InvalidRequest
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.queue.build_samples import Builder, EditTokens, Sample, problem_of
from tuneloop.learner.ledger.schema import (
    feedback,
    held_out,
    rankings,
    rollouts,
    samples,
    uses,
)
from tuneloop.learner.samples import SampleState
from tuneloop.rollouts import RolloutSource

chosen = rollouts.alias("chosen")
rejected = rollouts.alias("rejected")
ranked = rollouts.alias("ranked")


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """How many samples of an objective are ready, and since when; seconds since the epoch."""

    count: int
    oldest_time: float | None
    """When the oldest ready one was recorded."""
    newest_time: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCounts:
    """How many samples of one objective there are."""

    ready: int
    waiting: int
    """Recorded, but a rollout they refer to is not."""
    used: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A sample that can never be trained on, and why."""

    sample_id: str
    objective: str
    reason: str
    user_hash: str = ""
    """Whose sample it is, if known."""


def readiness(
    database: Database,
    objective: str,
    exclude: Collection[str] = (),
    *,
    fresh_versions: Collection[int] | None = None,
) -> Readiness:
    """Count the ready samples of an objective, without those in `exclude`.

    With `fresh_versions`, only those that these versions of the policy sampled.
    """
    recorded = samples.c.recorded_time
    query = ready_samples(func.count(), func.min(recorded), func.max(recorded)).where(
        samples.c.objective == objective, samples.c.state == SampleState.OPEN
    )
    if exclude:
        query = query.where(samples.c.sample_id.not_in(list(exclude)))
    if fresh_versions is not None:
        query = query.where(sampled_by(chosen, fresh_versions))
    with database.read() as connection:
        count, oldest, newest = connection.execute(query).one()
    return Readiness(count=count, oldest_time=oldest, newest_time=newest)


def counts(database: Database, objective: str) -> SampleCounts:
    """Count the ready, waiting and used samples of an objective."""
    is_open = and_(samples.c.objective == objective, samples.c.state == SampleState.OPEN)
    waiting = with_rollouts(func.count()).where(is_open, not_(ALL_RECORDED))
    used = select(func.count()).where(uses.c.objective == objective, uses.c.epoch == 0)
    with database.read() as connection:
        return SampleCounts(
            ready=connection.execute(ready_samples(func.count()).where(is_open)).scalar_one(),
            waiting=connection.execute(waiting).scalar_one(),
            used=connection.execute(used).scalar_one(),
        )


def take_samples(
    database: Database,
    objective: str,
    limit: int,
    *,
    exclude: Collection[str] = (),
    edit_tokens: EditTokens | None = None,
    of_each_user: int | None = None,
    fresh_versions: Collection[int] | None = None,
    higher_is_better: bool = True,
) -> tuple[list[Sample], list[Refusal]]:
    """Return the oldest ready samples of an objective, at most `limit`, without `exclude`.

    Users' feedback comes before imported feedback. The oldest `of_each_user` samples of each user
    come before all others, so that one user's flood keeps nobody waiting. With `fresh_versions`,
    only samples that these versions of the policy sampled; `higher_is_better` is of the metric that
    is the reward. This changes nothing: a sample is used once the step that used it is committed.
    The second list names ready samples that cannot be trained on.
    """
    query = ready_samples(*COLUMNS).where(
        samples.c.objective == objective, samples.c.state == SampleState.OPEN
    )
    imported = chosen.c.source == RolloutSource.IMPORT.value
    if exclude:
        query = query.where(samples.c.sample_id.not_in(list(exclude)))
    if fresh_versions is not None:
        query = query.where(sampled_by(chosen, fresh_versions))
    if of_each_user is None or of_each_user >= limit:
        query = query.order_by(imported, *AGE)
    else:
        number = func.row_number().over(partition_by=WHOSE, order_by=AGE)
        query = query.order_by(imported, number > of_each_user, *AGE)
    taken: list[Sample] = []
    refusals: list[Refusal] = []
    with database.read() as connection:
        builder = Builder(connection, edit_tokens, higher_is_better=higher_is_better)
        for row in connection.execute(query.limit(limit)).all():
            problem = problem_of(row)
            if problem is None:
                try:
                    taken.append(builder.build(row))
                except InvalidRequest as error:
                    problem = error.message
            if problem is not None:
                refusals.append(
                    Refusal(sample_id=row.sample_id, objective=objective, reason=problem)
                )
    return taken, refusals


def refuse(database: Database, refusals: Sequence[Refusal]) -> None:
    """Refuse samples for good, and record why."""
    with database.write() as connection:
        for refusal in refusals:
            connection.execute(
                update(samples)
                .where(
                    samples.c.sample_id == refusal.sample_id,
                    samples.c.objective == refusal.objective,
                    samples.c.state == SampleState.OPEN,
                )
                .values(state=SampleState.REFUSED, note=refusal.reason)
            )


def unreported(database: Database, limit: int) -> list[Refusal]:
    """Return refused samples whose dead letter was not sent yet, oldest first."""
    query = (
        with_rollouts(
            samples.c.sample_id, samples.c.objective, samples.c.note, WHOSE.label("user_hash")
        )
        .where(samples.c.state == SampleState.REFUSED, samples.c.reported.is_(False))
        .order_by(samples.c.accepted_time, samples.c.sample_id)
        .limit(limit)
    )
    with database.read() as connection:
        return [
            Refusal(
                sample_id=row.sample_id,
                objective=row.objective,
                reason=row.note or "",
                user_hash=row.user_hash or "",
            )
            for row in connection.execute(query)
        ]


def mark_reported(database: Database, refusal: Refusal) -> None:
    """Record that the dead letter of a refused sample was sent."""
    with database.write() as connection:
        connection.execute(
            update(samples)
            .where(
                samples.c.sample_id == refusal.sample_id,
                samples.c.objective == refusal.objective,
            )
            .values(reported=True)
        )


def mark_stale(
    database: Database,
    objective: str,
    fresh_versions: Collection[int],
    exclude: Collection[str] = (),
) -> int:
    """Mark scored samples with tokens of other versions than these stale; return how many.

    For the objectives that learn from the policy's own samples: `ppo` and `grpo`.
    """
    old = (
        select(samples.c.sample_id)
        .join(rollouts, rollouts.c.completion_id == samples.c.completion_id)
        .where(
            samples.c.objective == objective,
            samples.c.state == SampleState.OPEN,
            not_(sampled_by(rollouts, fresh_versions)),
        )
    )
    with database.read() as connection:
        stale = set(connection.execute(old).scalars()) - set(exclude)
    if stale:
        with database.write() as connection:
            for sample_id in stale:
                connection.execute(
                    update(samples)
                    .where(samples.c.sample_id == sample_id, samples.c.objective == objective)
                    .values(state=SampleState.STALE)
                )
    return len(stale)


def sampled_by(of: FromClause, versions: Collection[int]) -> ColumnElement[bool]:
    """Return the condition that the first and the last version of a rollout are among these."""
    listed = sorted(versions)
    return and_(of.c.oldest_version.in_(listed), of.c.policy_version.in_(listed))


ALL_RECORDED = and_(
    chosen.c.completion_id.is_not(None),
    samples.c.rejected_id.is_(None) | rejected.c.completion_id.is_not(None),
    (samples.c.kind != "ranking")
    | not_(
        select(rankings.c.position)
        .outerjoin(ranked, ranked.c.completion_id == rankings.c.completion_id)
        .where(rankings.c.feedback_id == samples.c.feedback_id, ranked.c.completion_id.is_(None))
        .exists()
    ),
)
FOR_LEARNING = and_(
    chosen.c.source != RolloutSource.EVAL.value,
    chosen.c.prompt_sha256.not_in(select(held_out.c.prompt_sha256)),
)
LAST_WORD = or_(
    samples.c.state == SampleState.OPEN,
    and_(samples.c.state == SampleState.USED, samples.c.current.is_(True)),
)
"""What users say now, whether it was learned from or not."""
WHOSE = case((samples.c.user_hash == "", chosen.c.user_hash), else_=samples.c.user_hash)
"""The user who judged; for a scored rollout, the user who asked."""
AGE = (samples.c.accepted_time, samples.c.sample_id)
COLUMNS: list[ColumnElement[Any]] = [
    *samples.c,
    *(column.label(f"chosen_{column.name}") for column in chosen.c),
    *(column.label(f"rejected_{column.name}") for column in rejected.c),
    feedback.c.payload,
]
"""The columns `Builder` reads."""


def with_rollouts(*columns: ColumnElement[Any]) -> Any:
    """Select from samples, joined with the rollouts and the feedback they refer to, if recorded."""
    return (
        select(*columns)
        .select_from(samples)
        .outerjoin(chosen, chosen.c.completion_id == samples.c.completion_id)
        .outerjoin(rejected, rejected.c.completion_id == samples.c.rejected_id)
        .outerjoin(feedback, feedback.c.feedback_id == samples.c.feedback_id)
    )


def ready_samples(*columns: ColumnElement[Any]) -> Any:
    """Select from the samples whose rollouts are all recorded and may be learned from."""
    return with_rollouts(*columns).where(ALL_RECORDED, FOR_LEARNING)
