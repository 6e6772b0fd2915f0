"""Answers of two versions and what users said about them, in order of arrival."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, func, select

from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.reports.answers import last_metrics, last_thumbs, of_versions
from tuneloop.learner.ledger.schema import feedback, rollouts, scores

EARLIER = 500
"""The number of newest earlier rewards that later ones are compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedAnswer:
    """An answer to a user and how it was judged."""

    user_hash: str
    """The hash of the user who asked."""
    group_id: str
    """The group of the request."""
    policy_version: int
    value: float
    """A thumb or a boolean as 0 or 1, a reward or a number as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredTraffic:
    """One metric of both versions."""

    answers: Sequence[JudgedAnswer]
    """In the order in which they were measured."""
    earlier: Sequence[float]
    """Newest values on stable's answers from before the trial."""
    is_boolean: bool


def thumbs(database: Database, versions: Sequence[int], since: float) -> list[JudgedAnswer]:
    """Return thumbs on answers given `since`: each rater's last one on each answer."""
    last = last_thumbs(_answers(versions, since))
    query = select(last).order_by(last.c.accepted_time, last.c.feedback_id)
    with database.read() as connection:
        return [_judged(row, float(row.up)) for row in connection.execute(query)]


def rewards(database: Database, versions: Sequence[int], since: float) -> list[JudgedAnswer]:
    """Return rewards of answers given `since`, by the newest reward model that scored each."""
    query = _newest_scores(_answers(versions, since)).order_by(
        scores.c.scored_time, scores.c.completion_id
    )
    with database.read() as connection:
        return [_judged(row, row.reward) for row in connection.execute(query)]


def measured(
    database: Database, name: str, *, canary: int, stable: int, since: float
) -> MeasuredTraffic:
    """Return a metric on answers given `since`: each rater's last value on each answer.

    The booleans or the numbers of that name: whichever there were more of before, so that what
    comes during the trial cannot choose.
    """
    is_boolean = _measures_booleans(database, name, since)
    last = last_metrics(_answers((canary, stable), since))
    of_name = (last.c.metric == name, last.c.is_boolean == is_boolean)
    query = select(last).where(*of_name).order_by(last.c.accepted_time, last.c.feedback_id)
    before = last_metrics(and_(of_versions([stable]), rollouts.c.finished_time < since))
    earlier = (
        select(before.c.measured)
        .where(before.c.metric == name, before.c.is_boolean == is_boolean)
        .order_by(before.c.accepted_time.desc(), before.c.feedback_id)
        .limit(EARLIER)
    )
    with database.read() as connection:
        return MeasuredTraffic(
            answers=[_judged(row, row.measured) for row in connection.execute(query)],
            earlier=list(connection.execute(earlier).scalars()),
            is_boolean=is_boolean,
        )


def _measures_booleans(database: Database, name: str, until: float) -> bool:
    given = feedback.c.metric == name
    counted = (
        select(feedback.c.is_boolean, func.count())
        .where(given, feedback.c.accepted_time < until, feedback.c.status != "retracted")
        .group_by(feedback.c.is_boolean)
    )
    first = (
        select(feedback.c.is_boolean)
        .where(given)
        .order_by(feedback.c.accepted_time, feedback.c.feedback_id)
        .limit(1)
    )
    with database.read() as connection:
        counts = {bool(row[0]): row[1] for row in connection.execute(counted)}
        if counts:
            return bool(counts.get(True, 0) >= counts.get(False, 0))
        return bool(connection.execute(first).scalar())


def earlier_rewards(database: Database, version: int, until: float) -> list[float]:
    """Return the newest rewards of a version's answers given before `since`."""
    before = and_(of_versions([version]), rollouts.c.finished_time < until)
    query = _newest_scores(before).order_by(rollouts.c.finished_time.desc()).limit(EARLIER)
    with database.read() as connection:
        return [row.reward for row in connection.execute(query)]


def _newest_scores(condition: Any) -> Any:
    others = scores.alias()
    newest = (
        select(func.max(others.c.reward_model_version))
        .where(others.c.completion_id == scores.c.completion_id)
        .scalar_subquery()
    )
    return (
        select(
            rollouts.c.user_hash, rollouts.c.group_id, rollouts.c.policy_version, scores.c.reward
        )
        .join(scores, scores.c.completion_id == rollouts.c.completion_id)
        .where(condition, scores.c.reward.is_not(None), scores.c.reward_model_version == newest)
    )


def _answers(versions: Sequence[int], since: float) -> Any:
    return and_(of_versions(versions), rollouts.c.finished_time >= since)


def _judged(row: Any, value: float) -> JudgedAnswer:
    return JudgedAnswer(
        user_hash=row.user_hash,
        group_id=row.group_id,
        policy_version=row.policy_version,
        value=value,
    )
