"""Forget a user: delete every row of theirs, and say which versions had learned from them.

The record of this stays: the keyed hash of their name, the time, how much was deleted, and the
versions whose weights still carry it.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, and_, delete, func, or_, select, true, tuple_

from tuneloop.learner.ledger.accounting.lineage import same_sample
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.rows import moment
from tuneloop.learner.ledger.schema import (
    effects,
    feedback,
    forgotten,
    rankings,
    reference_logprobs,
    retractions,
    rollouts,
    samples,
    scores,
    undone_uses,
    uses,
)
from tuneloop.learner.samples import ModelRole


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What was removed."""

    rollouts: int
    feedback: int
    policy_versions: tuple[int, ...]
    """Versions of the policy that had used them, and whose weights still carry it."""
    reward_model_versions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The record that a user was forgotten."""

    time: datetime
    forgotten: Forgotten


def theirs(user_hash: str) -> Any:
    """Select the completions made for a user."""
    return select(rollouts.c.completion_id).where(rollouts.c.user_hash == user_hash)


def touching(user_hash: str) -> Any:
    """Select the samples of a user's judgements, and of others' judgements on their answers."""
    own = theirs(user_hash)
    ranking_them = select(rankings.c.feedback_id).where(rankings.c.completion_id.in_(own))
    return or_(
        samples.c.user_hash == user_hash,
        samples.c.completion_id.in_(own),
        samples.c.rejected_id.in_(own),
        samples.c.feedback_id.in_(ranking_them),
    )


def judgements_about(user_hash: str) -> Any:
    """Select a user's judgements, and others' judgements on their answers."""
    spoken_of = select(samples.c.feedback_id).where(
        touching(user_hash), samples.c.feedback_id.is_not(None)
    )
    return or_(
        feedback.c.user_hash == user_hash,
        feedback.c.completion_id.in_(theirs(user_hash)),
        feedback.c.feedback_id.in_(spoken_of),
    )


def given_by_others(database: Database, user_hash: str) -> list[str]:
    """Return the ids of others' feedback on a user's answers, which may quote them."""
    query = select(feedback.c.feedback_id).where(
        judgements_about(user_hash), feedback.c.user_hash != user_hash
    )
    with database.read() as connection:
        return list(connection.execute(query).scalars())


def versions_used(connection: Connection, chosen: Any, model: str) -> tuple[int, ...]:
    """Return versions whose own steps used one of the samples, quarantined ones too."""
    used = (
        select(uses.c.policy_version)
        .join(samples, same_sample)
        .where(chosen, uses.c.model == model, uses.c.policy_version.is_not(None))
    )
    put_back = (
        select(undone_uses.c.version)
        .join(
            samples,
            (samples.c.sample_id == undone_uses.c.sample_id)
            & (samples.c.objective == undone_uses.c.objective),
        )
        .where(chosen, undone_uses.c.model == model)
    )
    return tuple(sorted(connection.execute(used.union(put_back)).scalars()))


def used_since_a_version(database: Database, user_hash: str, model: str) -> bool:
    """Return whether steps that no version has yet used data of a user."""
    query = (
        select(func.count())
        .select_from(uses)
        .join(samples, same_sample)
        .where(touching(user_hash), uses.c.model == model, uses.c.policy_version.is_(None))
    )
    with database.read() as connection:
        return bool(connection.execute(query).scalar_one())


def forget_user(database: Database, user_hash: str, now: float) -> Forgotten:
    """Remove the user's rollouts and feedback, others' feedback on them, and every use of them."""
    own, judgements = theirs(user_hash), judgements_about(user_hash)
    with database.write() as connection:
        policy_versions = versions_used(connection, touching(user_hash), ModelRole.POLICY)
        reward_model_versions = versions_used(
            connection, touching(user_hash), ModelRole.REWARD_MODEL
        )
        feedback_ids = list(
            connection.execute(select(feedback.c.feedback_id).where(judgements)).scalars()
        )
        about_them = or_(touching(user_hash), samples.c.feedback_id.in_(feedback_ids))
        doomed = select(samples.c.sample_id, samples.c.objective).where(about_them)
        for table in (uses, undone_uses, effects):
            of_them = tuple_(table.c.sample_id, table.c.objective).in_(doomed)
            connection.execute(delete(table).where(of_them))
        connection.execute(delete(samples).where(about_them))
        connection.execute(delete(scores).where(scores.c.completion_id.in_(own)))
        for table in (scores, samples):
            connection.execute(delete(table).where(_stray(table, user_hash)))
        connection.execute(delete(rankings).where(rankings.c.feedback_id.in_(feedback_ids)))
        connection.execute(
            delete(retractions).where(
                or_(
                    retractions.c.user_hash == user_hash,
                    retractions.c.feedback_id.in_(feedback_ids),
                )
            )
        )
        # A cache keyed by hashes: whose a row is cannot be told.
        connection.execute(delete(reference_logprobs))
        gone = Forgotten(
            feedback=connection.execute(
                delete(feedback).where(feedback.c.feedback_id.in_(feedback_ids))
            ).rowcount,
            rollouts=connection.execute(
                delete(rollouts).where(rollouts.c.user_hash == user_hash)
            ).rowcount,
            policy_versions=policy_versions,
            reward_model_versions=reward_model_versions,
        )
        connection.execute(forgotten.insert().values(_row(user_hash, gone, now)))
    database.erase_log()
    return gone


def _stray(table: Table, user_hash: str) -> Any:
    """Select scores that came after their user was forgotten: the gateway's ids carry the hash."""
    known = select(rollouts.c.completion_id)
    about_them = table.c.completion_id.contains(user_hash, autoescape=True)
    alone = table.c.completion_id.not_in(known)
    return and_(about_them, alone, table.c.kind == "score" if table is samples else true())


def records(database: Database, user_hash: str) -> list[Record]:
    """Return when a user was forgotten, oldest first: they may have come back."""
    query = select(forgotten).where(forgotten.c.user_hash == user_hash).order_by(forgotten.c.number)
    with database.read() as connection:
        return [
            Record(
                time=moment(row.time),
                forgotten=Forgotten(
                    rollouts=row.rollouts,
                    feedback=row.feedback,
                    policy_versions=tuple(json.loads(row.policy_versions)),
                    reward_model_versions=tuple(json.loads(row.reward_model_versions)),
                ),
            )
            for row in connection.execute(query)
        ]


def row_counts(database: Database) -> dict[str, int]:
    """Count the rows of the tables that grow with traffic."""
    tables = (rollouts, feedback, scores, samples, uses)
    with database.read() as connection:
        return {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in tables
        }


def _row(user_hash: str, gone: Forgotten, now: float) -> dict[str, Any]:
    return {
        "user_hash": user_hash,
        "time": now,
        "rollouts": gone.rollouts,
        "feedback": gone.feedback,
        "policy_versions": json.dumps(gone.policy_versions),
        "reward_model_versions": json.dumps(gone.reward_model_versions),
    }
