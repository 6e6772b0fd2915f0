"""Forget a user or a session: delete every row of it, and say which versions had learned from it.

The record of this stays: the keyed hash of the user's name or the session's id, the time, how much
was deleted, and the versions whose weights still carry it.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, and_, delete, exists, func, or_, select, true, tuple_

from tuneloop.learner.ledger.accounting.lineage import same_sample
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events.follow_up_rules import delete_follow_ups
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
    signals,
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
    """The record that a user or a session was forgotten."""

    time: datetime
    forgotten: Forgotten


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonalData:
    """What is forgotten together: all of a user's, or else one session of a tenant."""

    user_hash: str = ""
    tenant: str = ""
    session_id: str = ""

    @property
    def asked(self) -> Any:
        """Select its rollouts."""
        return self._in(rollouts)

    @property
    def judged(self) -> Any:
        """Select the user's own judgements, or those on the session."""
        return self._in(feedback)

    @property
    def recorded(self) -> Any:
        """Select the records that it was forgotten."""
        return self._in(forgotten)

    def _in(self, table: Table) -> Any:
        if self.user_hash:
            return table.c.user_hash == self.user_hash
        return and_(table.c.session_id == self.session_id, table.c.tenant == self.tenant)


def theirs(data: PersonalData) -> Any:
    """Select the completions made for a user, or in a session."""
    return select(rollouts.c.completion_id).where(data.asked)


def touching(data: PersonalData) -> Any:
    """Select the samples of a user's judgements, and of others' judgements on their answers.

    Of a session those of judgements on it and on its answers.
    """
    own = theirs(data)
    ranking_them = select(rankings.c.feedback_id).where(rankings.c.completion_id.in_(own))
    judging = select(feedback.c.feedback_id).where(data.judged)
    return or_(
        samples.c.user_hash == data.user_hash
        if data.user_hash
        else samples.c.feedback_id.in_(judging),
        samples.c.completion_id.in_(own),
        samples.c.rejected_id.in_(own),
        samples.c.feedback_id.in_(ranking_them),
    )


def judgements_about(data: PersonalData) -> Any:
    """Select a user's judgements, and others' judgements on their answers and sessions.

    Of a session those on it and on its answers.
    """
    spoken_of = select(samples.c.feedback_id).where(
        touching(data), samples.c.feedback_id.is_not(None)
    )
    own_session = exists().where(
        data.asked,
        rollouts.c.session_id != "",
        rollouts.c.session_id == feedback.c.session_id,
        rollouts.c.tenant == feedback.c.tenant,
    )
    return or_(
        data.judged,
        feedback.c.completion_id.in_(theirs(data)),
        feedback.c.feedback_id.in_(spoken_of),
        own_session,
    )


def feedback_to_erase(database: Database, data: PersonalData) -> list[str]:
    """Return the ids of feedback that goes with it, without a user's own.

    That may quote their answers, and its events are not found by the user's hash.
    """
    query = select(feedback.c.feedback_id).where(judgements_about(data))
    if data.user_hash:
        query = query.where(feedback.c.user_hash != data.user_hash)
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


def used_since_a_version(database: Database, data: PersonalData, model: str) -> bool:
    """Return whether steps that no version has yet used it."""
    query = (
        select(func.count())
        .select_from(uses)
        .join(samples, same_sample)
        .where(touching(data), uses.c.model == model, uses.c.policy_version.is_(None))
    )
    with database.read() as connection:
        return bool(connection.execute(query).scalar_one())


def forget_user(database: Database, user_hash: str, now: float) -> Forgotten:
    """Remove the user's rollouts, feedback and signals, others' on them, and every use of them."""
    return forget(database, PersonalData(user_hash=user_hash), now)


def forget(database: Database, data: PersonalData, now: float) -> Forgotten:
    """Remove the rollouts, the feedback and signals about them, and every use of them."""
    own, judgements, about = theirs(data), judgements_about(data), touching(data)
    with database.write() as connection:
        policy_versions = versions_used(connection, about, ModelRole.POLICY)
        reward_model_versions = versions_used(connection, about, ModelRole.REWARD_MODEL)
        feedback_ids = list(
            connection.execute(select(feedback.c.feedback_id).where(judgements)).scalars()
        )
        about_them = or_(about, samples.c.feedback_id.in_(feedback_ids))
        doomed = select(samples.c.sample_id, samples.c.objective).where(about_them)
        for table in (uses, undone_uses, effects):
            of_them = tuple_(table.c.sample_id, table.c.objective).in_(doomed)
            connection.execute(delete(table).where(of_them))
        connection.execute(delete(samples).where(about_them))
        connection.execute(delete(scores).where(scores.c.completion_id.in_(own)))
        told: Any = signals.c.completion_id.in_(own)
        if data.user_hash:
            # The gateway's ids carry the hash, also of completions that were never recorded.
            carries = signals.c.completion_id.contains(data.user_hash, autoescape=True)
            told = or_(told, signals.c.user_hash == data.user_hash, carries)
        connection.execute(delete(signals).where(told))
        delete_follow_ups(connection, own)
        for table in (scores, samples) if data.user_hash else ():
            connection.execute(delete(table).where(_stray(table, data.user_hash)))
        connection.execute(delete(rankings).where(rankings.c.feedback_id.in_(feedback_ids)))
        taken_back: Any = retractions.c.feedback_id.in_(feedback_ids)
        if data.user_hash:
            taken_back = or_(taken_back, retractions.c.user_hash == data.user_hash)
        connection.execute(delete(retractions).where(taken_back))
        # A cache keyed by hashes: whose a row is cannot be told.
        connection.execute(delete(reference_logprobs))
        gone = Forgotten(
            feedback=connection.execute(
                delete(feedback).where(feedback.c.feedback_id.in_(feedback_ids))
            ).rowcount,
            rollouts=connection.execute(delete(rollouts).where(data.asked)).rowcount,
            policy_versions=policy_versions,
            reward_model_versions=reward_model_versions,
        )
        connection.execute(forgotten.insert().values(_row(data, gone, now)))
    database.erase_log()
    return gone


def _stray(table: Table, user_hash: str) -> Any:
    """Select scores, and samples of others' signals, on completions that the ledger does not have.

    They come after their user was forgotten: the gateway's ids carry the hash.
    """
    known = select(rollouts.c.completion_id)
    about_them = table.c.completion_id.contains(user_hash, autoescape=True)
    alone = table.c.completion_id.not_in(known)
    return and_(
        about_them, alone, table.c.kind.in_(("score", "signals")) if table is samples else true()
    )


def records(database: Database, data: PersonalData) -> list[Record]:
    """Return when it was forgotten, oldest first: a user may have come back."""
    query = select(forgotten).where(data.recorded).order_by(forgotten.c.number)
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
    tables = (rollouts, feedback, signals, scores, samples, uses)
    with database.read() as connection:
        return {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in tables
        }


def _row(data: PersonalData, gone: Forgotten, now: float) -> dict[str, Any]:
    return {
        "user_hash": data.user_hash,
        "tenant": data.tenant,
        "session_id": data.session_id,
        "time": now,
        "rollouts": gone.rollouts,
        "feedback": gone.feedback,
        "policy_versions": json.dumps(gone.policy_versions),
        "reward_model_versions": json.dumps(gone.reward_model_versions),
    }
