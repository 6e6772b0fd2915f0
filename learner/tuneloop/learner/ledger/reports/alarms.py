"""Alarms over time: since when each is raised, so that a restart neither loses nor repeats it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, update

from tuneloop.learner.guards.alarms import Alarm
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.rows import moment
from tuneloop.learner.ledger.schema import alarms


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """An alarm that is raised now."""

    name: str
    since: datetime
    numbers: Mapping[str, float]
    """The figures that raise it now."""


def record_alarms(
    database: Database, found: Sequence[Alarm], now: float
) -> tuple[list[Raised], list[str], list[str]]:
    """Record the raised alarms; return them, the names of new ones and of those that ended."""
    names = {alarm.name for alarm in found}
    with database.write() as connection:
        still = alarms.c.cleared_time.is_(None)
        query = select(alarms.c.name, alarms.c.raised_time).where(still)
        since = {row.name: row.raised_time for row in connection.execute(query)}
        new = [alarm for alarm in found if alarm.name not in since]
        for alarm in new:
            connection.execute(
                alarms.insert().values(
                    name=alarm.name, raised_time=now, numbers=json.dumps(dict(alarm.numbers))
                )
            )
        ended = sorted(since.keys() - names)
        if ended:
            connection.execute(
                update(alarms).where(still, alarms.c.name.in_(ended)).values(cleared_time=now)
            )
    raised = [
        Raised(
            name=alarm.name, since=moment(since.get(alarm.name, now)), numbers=dict(alarm.numbers)
        )
        for alarm in found
    ]
    return raised, [alarm.name for alarm in new], ended
