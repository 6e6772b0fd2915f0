"""The feedback of one API key, tenant or tag: what it trained, and how all of it is taken back.

Only feedback has a key and a tenant. What others said about answers that a key asked for is theirs.
A tag is of requests: its feedback is what anybody said about their answers.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, or_, select

from tuneloop.feedback import FeedbackKind, FeedbackStatus, Retraction
from tuneloop.learner.ledger.accounting import downstream
from tuneloop.learner.ledger.accounting.downstream import Downstream
from tuneloop.learner.ledger.accounting.forget_user import versions_used
from tuneloop.learner.ledger.accounting.lineage import same_sample
from tuneloop.learner.ledger.accounting.version_shares import (
    ShareOfVersion,
    is_pair_of_thumb,
    shares_of_versions,
)
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events.lifecycle import ROWS_AT_ONCE, record_retractions
from tuneloop.learner.ledger.rows import has_tags, moment
from tuneloop.learner.ledger.schema import feedback, rollouts, samples, uses
from tuneloop.learner.samples import ModelRole


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """An API key, by name or id, else a tag of requests, else a tenant."""

    api_key: str = ""
    tenant: str = ""
    tag: tuple[str, str] | None = None
    """Name and value."""

    def __str__(self) -> str:
        if self.tag is not None:
            return f"tag {'='.join(self.tag)!r}"
        return f"key {self.api_key!r}" if self.api_key else f"tenant {self.tenant!r}"

    @property
    def given(self) -> Any:
        """Select the feedback that they gave."""
        if self.tag is not None:
            return feedback.c.completion_id.in_(self.answers)
        if self.api_key:
            return or_(
                feedback.c.api_key_id == self.api_key, feedback.c.api_key_name == self.api_key
            )
        return feedback.c.tenant == self.tenant

    @property
    def answers(self) -> Any:
        """Select the ids of the answers to requests with the tag."""
        assert self.tag is not None
        return select(rollouts.c.completion_id).where(has_tags(rollouts.c.tags, dict([self.tag])))

    @property
    def made(self) -> Any:
        """Select the samples of their feedback, and pairs of siblings it is half of."""
        if self.tag is not None:
            return or_(
                samples.c.completion_id.in_(self.answers), samples.c.rejected_id.in_(self.answers)
            )
        theirs = select(feedback.c.feedback_id).where(self.given)
        return or_(samples.c.feedback_id.in_(theirs), is_pair_of_thumb(self.given))


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderLineage:
    """The feedback of a sender, and the versions that learned from it."""

    feedback: int
    retracted: int
    users: int
    samples: Mapping[str, int]
    """Counts by state."""
    policy: Downstream
    reward_model: Downstream
    shares: tuple[ShareOfVersion, ...]
    """Of the versions of the policy whose own steps used it, oldest first."""
    rebuild_from: int | None
    """The last version that had not learned from it; None if the current line has not."""


def of_sender(database: Database, sender: Sender) -> SenderLineage:
    """Return the lineage of a sender; empty for one that gave nothing."""
    with database.read() as connection:
        count = select(feedback.c.status, func.count()).where(sender.given)
        by_status = {
            row[0]: row[1] for row in connection.execute(count.group_by(feedback.c.status))
        }
        users = connection.execute(
            select(func.count(feedback.c.user_hash.distinct())).where(sender.given)
        ).scalar_one()
        states = Counter(connection.execute(select(samples.c.state).where(sender.made)).scalars())
        direct = {m: set(versions_used(connection, sender.made, m)) for m in ModelRole}
        shares = shares_of_versions(connection, sender.made)
    policy, reward_model = direct[ModelRole.POLICY], direct[ModelRole.REWARD_MODEL]
    return SenderLineage(
        feedback=sum(by_status.values()),
        retracted=by_status.get(FeedbackStatus.RETRACTED.value, 0),
        users=users,
        samples=dict(sorted(states.items())),
        policy=downstream.downstream_of(database, ModelRole.POLICY, policy),
        reward_model=downstream.downstream_of(database, ModelRole.REWARD_MODEL, reward_model),
        shares=tuple(shares),
        rebuild_from=downstream.last_before(database, ModelRole.POLICY, policy),
    )


def used_since_a_version(database: Database, sender: Sender) -> bool:
    """Return whether steps of the policy that no version has yet used their feedback."""
    query = (
        select(func.count())
        .select_from(uses)
        .join(samples, same_sample)
        .where(sender.made, uses.c.model == ModelRole.POLICY, uses.c.policy_version.is_(None))
    )
    with database.read() as connection:
        return bool(connection.execute(query).scalar_one())


def retract_feedback(database: Database, sender: Sender, now: float) -> int:
    """Retract all feedback of a sender, as if each user had; return how much was not yet."""
    query = select(
        feedback.c.feedback_id, feedback.c.kind, feedback.c.tenant, feedback.c.user_hash
    ).where(sender.given, feedback.c.status != FeedbackStatus.RETRACTED.value)
    with database.read() as connection:
        rows = connection.execute(query).all()
    events = [
        Retraction(
            feedback_id=row.feedback_id,
            kind=FeedbackKind(row.kind),
            policy="",
            tenant=row.tenant,
            user_hash=row.user_hash,
            retracted_time=moment(now),
        )
        for row in rows
    ]
    for start in range(0, len(events), ROWS_AT_ONCE):
        chunk = [(event, 0) for event in events[start : start + ROWS_AT_ONCE]]
        record_retractions(database, chunk, now)
    return len(events)
