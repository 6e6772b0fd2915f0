"""One metric by version, as sums of its users: what an alarm compares.

A user who was measured n times on a version weighs √n values, with the mean of theirs: several
values of one user are not independent, and one user shall not decide. Requests without a user all
belong to the same one, so the weight is not 1.
"""

import math
from collections import defaultdict

from sqlalchemy import func, select

from tuneloop.learner.guards.metric_fall import MetricFall, MetricSums, metric_fall
from tuneloop.learner.guards.settings import GuardSettings
from tuneloop.learner.ledger.accounting import lineage, versions
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.reports.answers import last_metrics, of_users
from tuneloop.learner.samples import ModelRole
from tuneloop.learner.stats.intervals import Sums


def fall_of_metric(database: Database, settings: GuardSettings) -> MetricFall | None:
    """Return how far the metric that is watched has fallen; None if none is."""
    if not settings.metric:
        return None
    return metric_fall(
        stable_line(database),
        metric_sums(database, settings.metric, settings.metric_anchor),
        anchor=settings.metric_anchor,
        higher_is_better=settings.metric_higher_is_better,
        least=settings.least,
    )


def stable_line(database: Database) -> list[int]:
    """Return the stable version and those it grew from, newest first, down to 0."""
    stable = versions.stable_version(database, ModelRole.POLICY) or 0
    return [stable, *lineage.ancestors(database, ModelRole.POLICY, stable)]


def metric_sums(database: Database, name: str, anchor: int) -> MetricSums:
    """Return the sums of each version.

    Of the booleans or the numbers of that name: whichever the anchor has more of.
    """
    last = last_metrics(of_users)
    which = (last.c.policy_version, last.c.is_boolean, last.c.user_hash)
    query = (
        select(
            *which,
            func.count().label("number"),
            func.sum(last.c.measured).label("total"),
            func.sum(last.c.measured * last.c.measured).label("squares"),
        )
        .where(last.c.metric == name)
        .group_by(*which)
    )
    with database.read() as connection:
        rows = connection.execute(query).all()
    at_anchor = {True: 0, False: 0}
    for row in rows:
        at_anchor[bool(row.is_boolean)] += row.number * (row.policy_version == anchor)
    is_boolean = at_anchor[True] >= at_anchor[False]
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for row in rows:
        if bool(row.is_boolean) == is_boolean:
            weight = math.sqrt(row.number)
            of_version = sums[row.policy_version]
            of_version[0] += weight
            of_version[1] += weight * float(row.total) / row.number
            of_version[2] += weight * float(row.squares) / row.number
    by_version = {version: _whole(*of_version) for version, of_version in sums.items()}
    return MetricSums(by_version=by_version, is_boolean=is_boolean)


def _whole(weight: float, total: float, squares: float) -> Sums:
    """Return the sums of so many whole values, at least one, with the same moments."""
    count = max(1, math.floor(weight))
    return Sums(count=count, total=total * count / weight, squares=squares * count / weight)
