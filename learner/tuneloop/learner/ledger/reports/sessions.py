"""A session as people look it up: its answers, what was said of them, what learned from that."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, or_, select

from tuneloop.errors import NotFound
from tuneloop.learner.ledger.accounting import downstream
from tuneloop.learner.ledger.accounting.downstream import Reached
from tuneloop.learner.ledger.accounting.forget_user import PersonalData, judgements_about
from tuneloop.learner.ledger.accounting.lineage import same_sample
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.reports.feedback import FeedbackEntry, described
from tuneloop.learner.ledger.rows import moment
from tuneloop.learner.ledger.schema import feedback, rollouts, samples, uses
from tuneloop.learner.samples import ModelRole
from tuneloop.rollouts import RolloutSource


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionAnswer:
    """One answer of a session."""

    completion_id: str
    policy_version: int
    finished_time: datetime
    feedback_ids: tuple[str, ...]
    """Feedback on this completion itself."""
    used_by_versions: tuple[int, ...]
    """Versions of the policy whose own steps learned from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLineage:
    """A session and the versions that learned from it."""

    answers: tuple[SessionAnswer, ...]
    """In the order in which they were finished."""
    feedback: tuple[FeedbackEntry, ...]
    """On the session and on its answers, oldest first."""
    reached: Reached


def of_session(database: Database, policy: str, tenant: str, session_id: str) -> SessionLineage:
    """Return a session, also a forgotten one; raises `NotFound` for an unknown one."""
    data = PersonalData(tenant=tenant, session_id=session_id)
    with database.read() as connection:
        rows = connection.execute(
            select(feedback)
            .where(judgements_about(data))
            .order_by(feedback.c.accepted_time, feedback.c.feedback_id)
        ).all()
        entries = tuple(described(connection, policy, rows))
        answers = _answers(connection, data, entries)
    reached = downstream.of_data(database, data)
    if not (answers or entries or reached.forgotten):
        raise NotFound(
            f"no session {session_id[:128]!r} in the ledger: no request named it, or not yet",
            param="session_id",
        )
    return SessionLineage(answers=answers, feedback=entries, reached=reached)


def _answers(
    connection: Connection, data: PersonalData, entries: tuple[FeedbackEntry, ...]
) -> tuple[SessionAnswer, ...]:
    query = select(
        rollouts.c.completion_id, rollouts.c.policy_version, rollouts.c.finished_time
    ).where(data.asked, rollouts.c.source != RolloutSource.CANDIDATE.value)
    rows = connection.execute(query.order_by(rollouts.c.finished_time)).all()
    about = select(rollouts.c.completion_id).where(data.asked)
    learned = (
        select(samples.c.completion_id, samples.c.rejected_id, uses.c.policy_version)
        .join(uses, same_sample)
        .where(
            uses.c.model == ModelRole.POLICY,
            uses.c.policy_version.is_not(None),
            or_(samples.c.completion_id.in_(about), samples.c.rejected_id.in_(about)),
        )
    )
    used: dict[str | None, set[int]] = {}
    for use in connection.execute(learned):
        for completion_id in (use.completion_id, use.rejected_id):
            used.setdefault(completion_id, set()).add(use.policy_version)
    return tuple(
        SessionAnswer(
            completion_id=row.completion_id,
            policy_version=row.policy_version,
            finished_time=moment(row.finished_time),
            feedback_ids=tuple(
                entry.feedback.feedback_id
                for entry in entries
                if row.completion_id in entry.feedback.completion_ids
            ),
            used_by_versions=tuple(sorted(used.get(row.completion_id, ()))),
        )
        for row in rows
    )
