"""Committed steps and the samples they used: the accounting that makes each use count once.

A step is committed after its checkpoint is on disk, in one transaction with its uses. What is not
committed did not happen: after a crash its samples are open and its checkpoint is unknown here.

Epoch 0 is a sample's first use, of which there is exactly one; replays count as later epochs.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, delete, func, insert, select, update

from tuneloop.learner.ledger.accounting import lineage
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events.verdict_rules import settle_siblings, settle_votes
from tuneloop.learner.ledger.schema import rollouts, samples, steps, undone_uses, uses, versions
from tuneloop.learner.samples import SCORED_OBJECTIVES, ModelRole, SampleState


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """An optimizer step and what it used."""

    step: int
    samples: Mapping[str, Sequence[str]]
    """Sample ids by objective."""
    skipped: bool
    metrics: Mapping[str, float]
    replayed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Ids by objective of samples that were used before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedStep:
    """The newest committed step of a model."""

    step: int
    metrics: Mapping[str, float]
    committed_time: float


def commit_steps(
    database: Database, model: str, done: Sequence[Step], checkpoint: str, now: float
) -> int:
    """Commit steps of `model` ("policy" or "reward_model") with their uses; return how many.

    A sample that was forgotten in the meantime leaves no use; a retracted one stays retracted.
    """
    with database.write() as connection:
        for step in done:
            connection.execute(
                steps.insert().values(
                    model=model,
                    step=step.step,
                    checkpoint=checkpoint,
                    skipped=step.skipped,
                    metrics=json.dumps(dict(step.metrics)),
                    committed_time=now,
                )
            )
        return sum(_use(connection, model, step) for step in done)


def _use(connection: Connection, model: str, step: Step) -> int:
    count = 0
    for objective, sample_ids in step.samples.items():
        for sample_id in sample_ids:
            same = (samples.c.sample_id == sample_id) & (samples.c.objective == objective)
            row = connection.execute(
                select(samples.c.state, samples.c.topic, samples.c.user_hash).where(same)
            ).one_or_none()
            if row is None:
                continue
            _note_use(connection, model, step.step, objective, sample_id, epoch=0)
            if row.state != SampleState.RETRACTED:
                connection.execute(update(samples).where(same).values(state=SampleState.USED))
            if row.topic:
                # A newer verdict may have come during the step.
                settle_votes(connection, objective, row.topic, row.user_hash)
            count += 1
    for objective, sample_ids in step.replayed.items():
        for sample_id in sample_ids:
            same = (uses.c.sample_id == sample_id) & (uses.c.objective == objective)
            newest = connection.execute(select(func.max(uses.c.epoch)).where(same)).scalar_one()
            if newest is None:  # forgotten in the meantime
                continue
            _note_use(connection, model, step.step, objective, sample_id, epoch=newest + 1)
            count += 1
    return count


def _note_use(
    connection: Connection, model: str, step: int, objective: str, sample_id: str, *, epoch: int
) -> None:
    connection.execute(
        uses.insert().values(
            sample_id=sample_id, objective=objective, epoch=epoch, model=model, step=step
        )
    )


def checkpoints(database: Database, model: str) -> list[tuple[int, str]]:
    """Return (last step, name) of each committed checkpoint, newest first."""
    query = (
        select(func.max(steps.c.step), steps.c.checkpoint)
        .where(steps.c.model == model)
        .group_by(steps.c.checkpoint)
        .order_by(func.max(steps.c.step).desc())
    )
    with database.read() as connection:
        return [(step, name) for step, name in connection.execute(query)]


def newest_step(database: Database, model: str) -> CommittedStep | None:
    """Return the newest committed step of a model, or None."""
    query = select(steps).where(steps.c.model == model).order_by(steps.c.step.desc()).limit(1)
    with database.read() as connection:
        row = connection.execute(query).one_or_none()
    if row is None:
        return None
    return CommittedStep(
        step=row.step, metrics=json.loads(row.metrics), committed_time=row.committed_time
    )


def staleness(database: Database) -> float | None:
    """Return how many versions behind the newest step's scored rollouts were, on average.

    Counted as in `lineage.fresh_versions`. Steps without scored rollouts are passed over; None
    before the first with some.
    """
    scored = (
        uses.c.model == ModelRole.POLICY,
        uses.c.objective.in_(SCORED_OBJECTIVES),
    )
    newest = (
        select(uses.c.step).where(*scored, uses.c.epoch == 0).order_by(uses.c.step.desc()).limit(1)
    )
    same = (samples.c.sample_id == uses.c.sample_id) & (samples.c.objective == uses.c.objective)
    sampled = (
        select(rollouts.c.oldest_version, func.count())
        .select_from(uses)
        .join(samples, same)
        .join(rollouts, rollouts.c.completion_id == samples.c.completion_id)
        .where(*scored, uses.c.step == newest.scalar_subquery())
        .group_by(rollouts.c.oldest_version)
    )
    # The version its weights grew from: the newest that has all steps before it.
    parent = select(func.coalesce(func.max(versions.c.version), 0)).where(
        versions.c.model == ModelRole.POLICY,
        versions.c.last_step < newest.scalar_subquery(),
        versions.c.abandoned.is_(False),
    )
    with database.read() as connection:
        counts = {row[0]: row[1] for row in connection.execute(sampled)}
        grown_from = connection.execute(parent).scalar_one()
    if not counts:
        return None
    behind = sum(n * lineage.distance(database, grown_from, v) for v, n in counts.items())
    return float(behind / sum(counts.values()))


def unpublished_evidence(database: Database, model: str, after: int) -> list[float]:
    """Return the evidence of each committed step after step `after` that changed the weights."""
    query = select(steps.c.metrics).where(
        steps.c.model == model, steps.c.step > after, steps.c.skipped.is_(False)
    )
    with database.read() as connection:
        return [evidence_of(json.loads(row)) for row in connection.execute(query).scalars()]


def evidence_since(database: Database, version: int, other: int) -> float:
    """Return what the policy's `version` learned from since it left the line of `other`.

    In full steps: the sum of what the committed steps were worth.
    """
    line = [other, *lineage.ancestors(database, ModelRole.POLICY, other)]
    up = [version, *lineage.ancestors(database, ModelRole.POLICY, version)]
    # Every version descends from 0, so there is a common one.
    common = next(one for one in up if one in line)
    with database.read() as connection:
        last_steps = select(versions.c.version, versions.c.last_step).where(
            versions.c.model == ModelRole.POLICY, versions.c.version.in_((version, common))
        )
        last_of = {row.version: row.last_step for row in connection.execute(last_steps)}
        query = select(steps.c.metrics).where(
            steps.c.model == ModelRole.POLICY,
            steps.c.step > last_of.get(common, 0),
            steps.c.step <= last_of[version],
            steps.c.skipped.is_(False),
        )
        metrics = connection.execute(query).scalars().all()
    return math.fsum(evidence_of(json.loads(row)) for row in metrics)


def evidence_of(metrics: Mapping[str, float]) -> float:
    """Return the part of a full step that a step was, by its metrics; 1 if they do not say."""
    return metrics.get("evidence", 1.0)


def used_samples(database: Database, objective: str) -> int:
    """Count the samples of an objective that committed steps used."""
    query = select(func.count()).where(uses.c.objective == objective, uses.c.epoch == 0)
    with database.read() as connection:
        return int(connection.execute(query).scalar_one())


def roll_back(database: Database, model: str, step: int, now: float) -> int:
    """Undo the steps after `step` and reopen their samples; return how many uses there were.

    Versions published from them stay published, but nothing grows from them.
    """
    with database.write() as connection:
        remember_uses(connection, model, step)
        return len(undo_after(connection, model, step, now))


def remember_uses(connection: Connection, model: str, step: int, blamed_until: int = 0) -> None:
    """Record which versions had learned from what after `step`, before that is undone.

    Weights that are published have learned from it for good. Uses up to the step `blamed_until` are
    blamed for it.
    """
    connection.execute(
        insert(undone_uses).from_select(
            ["model", "version", "sample_id", "objective", "epoch", "step", "blamed"],
            select(
                uses.c.model,
                uses.c.policy_version,
                uses.c.sample_id,
                uses.c.objective,
                uses.c.epoch,
                uses.c.step,
                uses.c.step <= blamed_until,
            ).where(
                uses.c.model == model,
                uses.c.step > step,
                uses.c.policy_version.is_not(None),
            ),
        )
    )


def undo_after(
    connection: Connection, model: str, step: int, now: float
) -> Sequence[tuple[str, str]]:
    """Roll back inside a transaction; return (sample id, objective) of each use."""
    undone = connection.execute(
        delete(uses)
        .where(uses.c.model == model, uses.c.step > step)
        .returning(uses.c.sample_id, uses.c.objective, uses.c.epoch)
    ).all()
    connection.execute(delete(steps).where(steps.c.model == model, steps.c.step > step))
    connection.execute(
        update(versions)
        .where(versions.c.model == model, versions.c.last_step > step)
        .values(abandoned=True)
    )
    for sample_id, objective, epoch in undone:
        if epoch == 0:
            _reopen(connection, sample_id, objective, now)
    return [(sample_id, objective) for sample_id, objective, _ in undone]


def _reopen(connection: Connection, sample_id: str, objective: str, now: float) -> None:
    row = connection.execute(
        update(samples)
        .where(
            samples.c.sample_id == sample_id,
            samples.c.objective == objective,
            samples.c.state == SampleState.USED,
        )
        .values(state=SampleState.OPEN)
        .returning(*samples.c)
    ).one_or_none()
    if row is None:  # retracted
        return
    if row.topic:
        settle_votes(connection, objective, row.topic, row.user_hash)
    if row.kind == "siblings":
        query = select(rollouts.c.group_id).where(rollouts.c.completion_id == row.completion_id)
        settle_siblings(connection, connection.execute(query).scalar_one(), now)
