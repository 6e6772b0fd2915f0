"""Forgetting a user: every row of theirs, and which versions had learned from them."""

from dataclasses import dataclass

from sqlalchemy import delete, func, or_, select, tuple_

from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.schema import (
    feedback,
    rankings,
    reference_logprobs,
    retractions,
    rollouts,
    samples,
    scores,
    undone_uses,
    uses,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What was removed."""

    rollouts: int
    feedback: int
    policy_versions: tuple[int, ...]
    """Versions of the policy that had used them; their weights still carry that."""


def forget_user(database: Database, user_hash: str) -> Forgotten:
    """Remove the user's rollouts and feedback, others' feedback on them, and every use of them."""
    theirs = select(rollouts.c.completion_id).where(rollouts.c.user_hash == user_hash)
    touching = or_(
        samples.c.user_hash == user_hash,
        samples.c.completion_id.in_(theirs),
        samples.c.rejected_id.in_(theirs),
    )
    spoken_of = select(samples.c.feedback_id).where(touching, samples.c.feedback_id.is_not(None))
    ranking_them = select(rankings.c.feedback_id).where(rankings.c.completion_id.in_(theirs))
    judgements = or_(
        feedback.c.feedback_id.in_(ranking_them),
        feedback.c.user_hash == user_hash,
        feedback.c.completion_id.in_(theirs),
        feedback.c.feedback_id.in_(spoken_of),
    )
    with database.write() as connection:
        feedback_ids = list(
            connection.execute(select(feedback.c.feedback_id).where(judgements)).scalars()
        )
        about_them = or_(touching, samples.c.feedback_id.in_(feedback_ids))
        doomed = select(samples.c.sample_id, samples.c.objective).where(about_them)
        used = tuple_(uses.c.sample_id, uses.c.objective).in_(doomed)
        learned = select(uses.c.policy_version).where(
            used, uses.c.model == "policy", uses.c.policy_version.is_not(None)
        )
        undone = tuple_(undone_uses.c.sample_id, undone_uses.c.objective).in_(doomed)
        quarantined = select(undone_uses.c.version).where(undone, undone_uses.c.model == "policy")
        versions = sorted(
            {*connection.execute(learned).scalars(), *connection.execute(quarantined).scalars()}
        )
        connection.execute(delete(undone_uses).where(undone))
        connection.execute(delete(uses).where(used))
        connection.execute(delete(samples).where(about_them))
        connection.execute(delete(scores).where(scores.c.completion_id.in_(theirs)))
        connection.execute(delete(rankings).where(rankings.c.feedback_id.in_(feedback_ids)))
        connection.execute(
            delete(retractions).where(
                or_(
                    retractions.c.user_hash == user_hash,
                    retractions.c.feedback_id.in_(feedback_ids),
                )
            )
        )
        # A cache, kept by what it is of; nobody can tell whose a row is.
        connection.execute(delete(reference_logprobs))
        feedback_removed = connection.execute(
            delete(feedback).where(feedback.c.feedback_id.in_(feedback_ids))
        ).rowcount
        rollouts_removed = connection.execute(
            delete(rollouts).where(rollouts.c.user_hash == user_hash)
        ).rowcount
    return Forgotten(
        rollouts=rollouts_removed,
        feedback=feedback_removed,
        policy_versions=tuple(versions),
    )


def row_counts(database: Database) -> dict[str, int]:
    """Rows of the tables that grow with traffic."""
    tables = (rollouts, feedback, scores, samples, uses)
    with database.read() as connection:
        return {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in tables
        }
