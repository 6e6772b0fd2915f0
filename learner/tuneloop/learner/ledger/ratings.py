"""The ratings in the ledger, to be put on one scale."""

import json

from sqlalchemy import Connection, select

from tuneloop.learner.ledger.schema import feedback
from tuneloop.learner.ratings import Ratings

WINDOW = 8192
"""Latest ratings that are looked at."""


def read(connection: Connection) -> Ratings:
    """The last rating of each user on each completion, of the latest ones."""
    query = (
        select(feedback.c.user_hash, feedback.c.completion_id, feedback.c.payload)
        .where(feedback.c.kind == "rating", feedback.c.status != "retracted")
        .order_by(feedback.c.accepted_time.desc(), feedback.c.feedback_id.desc())
        .limit(WINDOW)
    )
    last: dict[tuple[str, str], str] = {}
    for row in connection.execute(query):
        last.setdefault((row.user_hash, row.completion_id), row.payload)
    by_user: dict[str, list[float]] = {}
    for (user_hash, _), payload in last.items():
        by_user.setdefault(user_hash, []).append(float(json.loads(payload)["value"]))
    return Ratings(by_user)
