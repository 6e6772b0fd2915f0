"""Answers to users, and the thumbs and metrics on them, as every report counts them."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import and_, func, select

from tuneloop.learner.ledger.schema import feedback, rollouts
from tuneloop.rollouts import RolloutSource

BYTES_PER_TOKEN = 4

of_users = rollouts.c.source == RolloutSource.USER.value
length = func.length(rollouts.c.completion_tokens) / BYTES_PER_TOKEN
"""The length of an answer in tokens."""


def of_versions(versions: Collection[int]) -> Any:
    """Return the condition "an answer of one of these versions to a user"."""
    return and_(of_users, rollouts.c.policy_version.in_(versions))


def last_thumbs(answers: Any) -> Any:
    """Return a subquery of each rater's last thumb on each answer, without retracted ones.

    `answers` is a condition on rollouts; `user_hash` is of the user who asked.
    """
    return _last_of_each("thumb", (feedback.c.up,), answers)


def last_metrics(answers: Any) -> Any:
    """Return a subquery of each rater's last value of each metric of each answer, likewise.

    Booleans and numbers of one name are two metrics: neither can change the other's mean.
    """
    values = (feedback.c.metric, feedback.c.is_boolean, feedback.c.measured)
    return _last_of_each("metric", values, answers, apart_by=values[:2])


def _last_of_each(
    kind: str, values: Sequence[Any], answers: Any, apart_by: Sequence[Any] = ()
) -> Any:
    last = func.row_number().over(
        partition_by=(feedback.c.completion_id, feedback.c.user_hash, *apart_by),
        order_by=(feedback.c.accepted_time.desc(), feedback.c.feedback_id.desc()),
    )
    ranked = (
        select(
            rollouts.c.user_hash,
            rollouts.c.group_id,
            rollouts.c.policy_version,
            *values,
            feedback.c.accepted_time,
            feedback.c.feedback_id,
            last.label("rank"),
        )
        .join(rollouts, rollouts.c.completion_id == feedback.c.completion_id)
        .where(answers, feedback.c.kind == kind, feedback.c.status != "retracted")
        .subquery()
    )
    return select(ranked).where(ranked.c.rank == 1).subquery()
