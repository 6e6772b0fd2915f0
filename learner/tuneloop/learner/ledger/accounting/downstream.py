"""Which versions one piece of feedback, or all data of one user, reached: by use and by descent.

Data in a version also reaches the versions that grew from it. What the policy learned through the
reward model's scores is not followed: every score carries a little of all feedback.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import and_, func, or_, select

from tuneloop.errors import NotFound
from tuneloop.learner.ledger.accounting import forget_user, lineage, versions
from tuneloop.learner.ledger.accounting.effects import FeedbackEffect, effects_of
from tuneloop.learner.ledger.accounting.forget_user import (
    PersonalData,
    Record,
    touching,
    versions_used,
)
from tuneloop.learner.ledger.accounting.lineage import same_sample
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.rows import moment
from tuneloop.learner.ledger.schema import feedback, rollouts, samples, signals, uses
from tuneloop.learner.ledger.schema import versions as all_versions
from tuneloop.learner.samples import ModelRole

MODELS = tuple(ModelRole)


@dataclass(frozen=True, slots=True, kw_only=True)
class Downstream:
    """Versions of one model."""

    direct: tuple[int, ...] = ()
    """Versions whose own steps used it."""
    descended: tuple[int, ...] = ()
    """Versions that grew from those."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleUses:
    """A sample that feedback made, and the steps that used it."""

    sample_id: str
    objective: str
    state: str
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackLineage:
    """What became of one feedback event."""

    feedback_id: str
    kind: str
    status: str
    user_hash: str
    completion_ids: tuple[str, ...]
    accepted_time: datetime
    samples: tuple[SampleUses, ...]
    policy: Downstream
    reward_model: Downstream
    effects: tuple[FeedbackEffect, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """The versions that learned from a user or a session."""

    policy: Downstream
    reward_model: Downstream
    rebuild_from: int | None
    """The last version that had not learned from it; None if the current line has not."""
    forgotten: tuple[Record, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UserLineage:
    """The data of a user, and the versions that learned from it."""

    rollouts: int
    feedback: int
    signals: int
    samples: Mapping[str, int]
    """Counts by state, of their judgements and of others' judgements on answers to them."""
    policy: Downstream
    reward_model: Downstream
    rebuild_from: int | None
    """The last version that had not learned from them; None if the current line has not."""
    forgotten: tuple[Record, ...] = field(default=())


def of_feedback(database: Database, feedback_id: str) -> FeedbackLineage:
    """Return the lineage of a feedback event; raises `NotFound`."""
    with database.read() as connection:
        query = select(feedback).where(feedback.c.feedback_id == feedback_id)
        row = connection.execute(query).one_or_none()
        if row is None:
            raise NotFound(
                f"no feedback {feedback_id[:100]!r} in the ledger: never recorded, not yet, "
                "or forgotten",
                param="feedback_id",
            )
        made = made_by(row)
        found = connection.execute(
            select(samples.c.sample_id, samples.c.objective, samples.c.state)
            .where(made)
            .order_by(samples.c.objective, samples.c.sample_id)
        ).all()
        used = connection.execute(
            select(uses.c.sample_id, uses.c.objective, uses.c.step)
            .join(samples, same_sample)
            .where(made)
            .order_by(uses.c.step)
        ).all()
        direct = {model: set(versions_used(connection, made, model)) for model in MODELS}
        changed = effects_of(connection, row, made)
    return FeedbackLineage(
        feedback_id=row.feedback_id,
        kind=row.kind,
        status=row.status,
        user_hash=row.user_hash,
        completion_ids=tuple(json.loads(row.completion_ids)),
        accepted_time=moment(row.accepted_time),
        samples=tuple(
            SampleUses(
                sample_id=sample.sample_id,
                objective=sample.objective,
                state=sample.state,
                steps=tuple(
                    use.step
                    for use in used
                    if (use.sample_id, use.objective) == (sample.sample_id, sample.objective)
                ),
            )
            for sample in found
        ),
        policy=downstream_of(database, ModelRole.POLICY, direct[ModelRole.POLICY]),
        reward_model=downstream_of(
            database, ModelRole.REWARD_MODEL, direct[ModelRole.REWARD_MODEL]
        ),
        effects=changed,
    )


def made_by(row: Any) -> Any:
    """Return the samples of a row of `feedback`: its own, and pairs of siblings it is half of."""
    own = samples.c.feedback_id == row.feedback_id
    if row.kind != "thumb" or row.session_id:
        return own
    either = or_(
        samples.c.completion_id == row.completion_id, samples.c.rejected_id == row.completion_id
    )
    halves = and_(samples.c.kind == "siblings", samples.c.user_hash == row.user_hash, either)
    return or_(own, halves)


def of_user(database: Database, user_hash: str) -> UserLineage:
    """Return the lineage of a user, also of a forgotten one; empty for an unknown user."""
    data = PersonalData(user_hash=user_hash)
    about = touching(data)
    with database.read() as connection:
        states = connection.execute(select(samples.c.state).where(about)).scalars()
        by_state = Counter(states)
        answered = connection.execute(
            select(func.count()).where(rollouts.c.user_hash == user_hash)
        ).scalar_one()
        judged = connection.execute(
            select(func.count()).where(feedback.c.user_hash == user_hash)
        ).scalar_one()
        told = connection.execute(
            select(func.count()).where(signals.c.user_hash == user_hash)
        ).scalar_one()
    reached = of_data(database, data)
    return UserLineage(
        rollouts=answered,
        feedback=judged,
        signals=told,
        samples=dict(sorted(by_state.items())),
        policy=reached.policy,
        reward_model=reached.reward_model,
        rebuild_from=reached.rebuild_from,
        forgotten=reached.forgotten,
    )


def of_data(database: Database, data: PersonalData) -> Reached:
    """Return the versions that learned from a user or a session, forgotten data included."""
    records = forget_user.records(database, data)
    with database.read() as connection:
        policy = set(versions_used(connection, touching(data), ModelRole.POLICY))
        reward_model = set(versions_used(connection, touching(data), ModelRole.REWARD_MODEL))
    for record in records:
        policy |= set(record.forgotten.policy_versions)
        reward_model |= set(record.forgotten.reward_model_versions)
    return Reached(
        policy=downstream_of(database, ModelRole.POLICY, policy),
        reward_model=downstream_of(database, ModelRole.REWARD_MODEL, reward_model),
        rebuild_from=last_before(database, ModelRole.POLICY, policy),
        forgotten=tuple(records),
    )


def downstream_of(database: Database, model: str, direct: Collection[int]) -> Downstream:
    """Return these versions and all that grew from them."""
    with database.read() as connection:
        query = select(all_versions.c.version, all_versions.c.parent).where(
            all_versions.c.model == model
        )
        parent_of = {row.version: row.parent for row in connection.execute(query)}
    descended: set[int] = set()
    # A parent is older than its children.
    for version in sorted(parent_of):
        parent = parent_of[version]
        if version not in direct and (parent in direct or parent in descended):
            descended.add(version)
    return Downstream(direct=tuple(sorted(direct)), descended=tuple(sorted(descended)))


def last_before(database: Database, model: str, direct: Collection[int]) -> int | None:
    """Return the newest version before all of `direct` on the line that is trained on.

    None if none of them is on that line: nothing has to be rebuilt.
    """
    head = versions.head(database, model)
    if head is None:
        return None
    line = [head.version, *lineage.ancestors(database, model, head.version)]
    used = [place for place, version in enumerate(line) if version in direct]
    return line[used[-1] + 1] if used else None
