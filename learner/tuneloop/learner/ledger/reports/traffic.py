"""How versions answer users, and what users say of it: figures for the dashboard.

Each user's last thumb on an answer counts, unless it was retracted, and the newest reward model's
reward; of metrics the last value of each name. Margins are 1.96 standard errors of the mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, case, func, select

from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.reports.answers import (
    last_metrics,
    last_thumbs,
    length,
    of_versions,
    thought_length,
)
from tuneloop.learner.ledger.schema import rollouts, scores
from tuneloop.learner.stats.intervals import MeanWithMargin, Sums

METRICS = 16
"""At most this many metrics of a version: applications choose the names, and may invent many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricFigures:
    """One metric of a version's answers."""

    name: str
    is_boolean: bool
    count: int
    mean: MeanWithMargin
    """Of a boolean the share that is true."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Users' requests to one version."""

    rollouts: int
    length: MeanWithMargin
    """Of answers, in tokens."""
    thought_length: MeanWithMargin
    """Of the thoughts before them."""
    reward: MeanWithMargin | None
    """None before an answer was scored."""
    thumbs_up: int
    thumbs_down: int
    metrics: tuple[MetricFigures, ...] = ()
    """By name; of more than `METRICS` those that most users were measured for."""


def traffic(database: Database, versions: Sequence[int]) -> dict[int, Traffic]:
    """Return the figures of each of these versions that has answered."""
    with database.read() as connection:
        lengths = _lengths(connection, versions, length)
        thoughts = _lengths(connection, versions, thought_length)
        rewards = _rewards(connection, versions)
        thumbs = _thumbs(connection, versions)
        metrics = _metrics(connection, versions)
    found = {}
    for version, row in lengths.items():
        up, down = thumbs.get(version, (0, 0))
        found[version] = Traffic(
            rollouts=row.number,
            length=_mean(row),
            thought_length=_mean(thoughts[version]),
            reward=rewards.get(version),
            thumbs_up=up,
            thumbs_down=down,
            metrics=metrics.get(version, ()),
        )
    return found


def _mean(row: Any) -> MeanWithMargin:
    # Postgres returns sums of integers as decimals.
    sums = Sums(count=row.number, total=float(row.total), squares=float(row.squares))
    return MeanWithMargin.of_sums(sums)


def _lengths(connection: Connection, versions: Sequence[int], tokens: Any) -> dict[int, Any]:
    query = (
        select(
            rollouts.c.policy_version,
            func.count().label("number"),
            func.sum(tokens).label("total"),
            func.sum(tokens * tokens).label("squares"),
        )
        .where(of_versions(versions))
        .group_by(rollouts.c.policy_version)
    )
    return {row.policy_version: row for row in connection.execute(query)}


def _rewards(connection: Connection, versions: Sequence[int]) -> dict[int, MeanWithMargin]:
    newest = func.row_number().over(
        partition_by=scores.c.completion_id, order_by=scores.c.reward_model_version.desc()
    )
    ranked = (
        select(rollouts.c.policy_version, scores.c.reward, newest.label("rank"))
        .join(rollouts, rollouts.c.completion_id == scores.c.completion_id)
        .where(of_versions(versions), scores.c.reward.is_not(None))
        .subquery()
    )
    query = (
        select(
            ranked.c.policy_version,
            func.count().label("number"),
            func.sum(ranked.c.reward).label("total"),
            func.sum(ranked.c.reward * ranked.c.reward).label("squares"),
        )
        .where(ranked.c.rank == 1)
        .group_by(ranked.c.policy_version)
    )
    return {row.policy_version: _mean(row) for row in connection.execute(query)}


def _thumbs(connection: Connection, versions: Sequence[int]) -> dict[int, tuple[int, int]]:
    last = last_thumbs(of_versions(versions))
    up = func.sum(case((last.c.up, 1), else_=0))
    query = select(last.c.policy_version, up.label("up"), func.count().label("number")).group_by(
        last.c.policy_version
    )
    return {
        row.policy_version: (int(row.up), row.number - int(row.up))
        for row in connection.execute(query)
    }


def _metrics(
    connection: Connection, versions: Sequence[int]
) -> dict[int, tuple[MetricFigures, ...]]:
    last = last_metrics(of_versions(versions))
    which = (last.c.policy_version, last.c.metric, last.c.is_boolean)
    place = func.row_number().over(
        partition_by=last.c.policy_version,
        order_by=(
            func.count(last.c.user_hash.distinct()).desc(),
            func.count().desc(),
            last.c.metric,
            last.c.is_boolean,
        ),
    )
    summed = (
        select(
            *which,
            func.count().label("number"),
            func.sum(last.c.measured).label("total"),
            func.sum(last.c.measured * last.c.measured).label("squares"),
            place.label("place"),
        )
        .group_by(*which)
        .subquery()
    )
    rows = connection.execute(select(summed).where(summed.c.place <= METRICS)).all()
    found: dict[int, list[MetricFigures]] = {}
    for row in sorted(rows, key=lambda row: (row.metric, not row.is_boolean)):
        figures = MetricFigures(
            name=row.metric, is_boolean=row.is_boolean, count=row.number, mean=_mean(row)
        )
        found.setdefault(row.policy_version, []).append(figures)
    return {version: tuple(figures) for version, figures in found.items()}
