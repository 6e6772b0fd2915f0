"""The figures alarms check: those of the versions that answer now, and of those before them."""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import case, func, select

from tuneloop.learner.guards.alarms import Figures, Seen
from tuneloop.learner.guards.metric_fall import MetricFall
from tuneloop.learner.ledger.accounting import steps
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.reports import evaluations
from tuneloop.learner.ledger.reports.answers import (
    last_thumbs,
    length,
    of_users,
    of_versions,
    thought_length,
)
from tuneloop.learner.ledger.rows import unpack_ids
from tuneloop.learner.ledger.schema import feedback, rollouts, scores
from tuneloop.learner.samples import ModelRole
from tuneloop.learner.stats.intervals import Sums
from tuneloop.learner.stats.repetition import repetition

VERSIONS = 64
"""The number of latest versions to read, among those that answered users."""
ANSWERS = 128
"""The number of latest answers whose repetition is computed, for either set of versions."""

LOGPROB_GAP = "gap of log-probs"
"""The ledger's fact that has it."""


def seen(database: Database, *, least: int, window: int, metric: MetricFall | None = None) -> Seen:
    """Read all figures that alarms check.

    The newest versions are as many as have `least` thumbs and answers together, so that a version
    that was just published is not judged by its first answers.
    """
    newest, before = _split(database, least)
    return Seen(
        newest=_figures(database, newest),
        before=_figures(database, before),
        thumbs_by_user=thumbs_by_user(database, window),
        kl=_kl(database),
        logprob_gap=logprob_gap(database),
        metric=metric,
    )


def logprob_gap(database: Database) -> float | None:
    """Return the last measured gap to generation's log-probs, in nats per token; None before."""
    known = database.fact(LOGPROB_GAP)
    return None if known is None else float(known)


def set_logprob_gap(database: Database, gap: float) -> None:
    """Store the gap that was measured."""
    database.set_fact(LOGPROB_GAP, repr(gap))


def thumbs_by_user(database: Database, window: int) -> Mapping[str, int]:
    """Return how many of the latest thumbs each user gave."""
    latest = (
        select(feedback.c.user_hash)
        .where(feedback.c.kind == "thumb", feedback.c.status != "retracted")
        .order_by(feedback.c.accepted_time.desc(), feedback.c.feedback_id.desc())
        .limit(window)
    )
    with database.read() as connection:
        return Counter(connection.execute(latest).scalars())


def _split(database: Database, least: int) -> tuple[list[int], list[int]]:
    answered = (
        select(rollouts.c.policy_version, func.count())
        .where(of_users)
        .group_by(rollouts.c.policy_version)
        .order_by(rollouts.c.policy_version.desc())
        .limit(VERSIONS)
    )
    judged = (
        select(rollouts.c.policy_version, func.count())
        .join(feedback, feedback.c.completion_id == rollouts.c.completion_id)
        .where(of_users, feedback.c.kind == "thumb", feedback.c.status != "retracted")
        .group_by(rollouts.c.policy_version)
    )
    with database.read() as connection:
        answers = {row[0]: row[1] for row in connection.execute(answered)}
        thumbs = {row[0]: row[1] for row in connection.execute(judged)}
    newest: list[int] = []
    for version in answers:
        enough = sum(thumbs.get(v, 0) for v in newest) >= least
        if enough and sum(answers[v] for v in newest) >= least:
            break
        newest.append(version)
    return newest, [version for version in answers if version not in newest]


def _figures(database: Database, versions: Collection[int]) -> Figures:
    if not versions:
        return Figures()
    chosen = of_versions(versions)
    latest = (
        select(rollouts.c.completion_tokens, rollouts.c.reasoning_tokens)
        .where(chosen)
        .order_by(rollouts.c.finished_time.desc(), rollouts.c.completion_id)
        .limit(ANSWERS)
    )
    with database.read() as connection:
        written = [
            (unpack_ids(row.completion_tokens), row.reasoning_tokens)
            for row in connection.execute(latest)
        ]
        return Figures(
            thumbs=_sums(connection.execute(_thumbs(chosen)).one()),
            reward=_sums(connection.execute(_rewards(chosen)).one()),
            length=_sums(connection.execute(_lengths(chosen, length)).one()),
            repetition=Sums.of(repetition(tokens[thought:]) for tokens, thought in written),
            thought_length=_sums(connection.execute(_lengths(chosen, thought_length)).one()),
            thought_repetition=Sums.of(repetition(tokens[:thought]) for tokens, thought in written),
        )


def _lengths(chosen: Any, tokens: Any) -> Any:
    return select(func.count(), func.sum(tokens), func.sum(tokens * tokens)).where(chosen)


def _thumbs(chosen: Any) -> Any:
    last = last_thumbs(chosen)
    ups = func.sum(case((last.c.up, 1), else_=0))
    return select(func.count(), ups, ups).select_from(last)


def _rewards(chosen: Any) -> Any:
    """Read the first reward of each answer: it came before anything was learned from it."""
    first = func.row_number().over(
        partition_by=scores.c.completion_id, order_by=scores.c.reward_model_version
    )
    ranked = (
        select(scores.c.reward, first.label("rank"))
        .join(rollouts, rollouts.c.completion_id == scores.c.completion_id)
        .where(chosen, scores.c.reward.is_not(None))
        .subquery()
    )
    squares = func.sum(ranked.c.reward * ranked.c.reward)
    return select(func.count(), func.sum(ranked.c.reward), squares).where(ranked.c.rank == 1)


def _sums(row: Any) -> Sums:
    count, total, squares = row
    return Sums(count=count, total=float(total or 0.0), squares=float(squares or 0.0))


def _kl(database: Database) -> float | None:
    """Return the KL of the newest evaluated version, else of the newest step."""
    version = evaluations.newest_evaluated(database)
    evaluated = None if version is None else evaluations.evaluate(database, version)
    if evaluated is not None and evaluated.kl is not None:
        return evaluated.kl
    last = steps.newest_step(database, ModelRole.POLICY)
    return None if last is None else last.metrics.get("kl")
