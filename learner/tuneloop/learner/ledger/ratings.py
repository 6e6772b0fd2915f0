"""Ratings on one scale: in standard deviations from the mean of the user who gave them.

One user's 3 of 5 is another's 5 of 5. Mean and variance of a user with few ratings are drawn to
those of all users, as if everybody had given `PRIOR` ratings like the crowd's.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from tuneloop.learner.ledger.schema import feedback

PRIOR = 1.0
"""Ratings of the crowd that each user is credited with."""
LIMIT = 3.0
"""Standard deviations beyond which a rating says no more."""
WINDOW = 8192
"""Latest ratings that are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratings:
    """Every user's present ratings."""

    by_user: Mapping[str, Sequence[float]]

    def standardised(self, user_hash: str, value: float) -> float:
        """A rating in standard deviations from the user's mean; 0 where all ratings are equal."""
        crowd = [rating for given in self.by_user.values() for rating in given]
        own = self.by_user.get(user_hash, ())
        if not crowd:
            return 0.0
        crowd_mean = math.fsum(crowd) / len(crowd)
        crowd_variance = math.fsum((r - crowd_mean) ** 2 for r in crowd) / len(crowd)
        weight = len(own) + PRIOR
        mean = (math.fsum(own) + PRIOR * crowd_mean) / weight
        spread = math.fsum((r - mean) ** 2 for r in own)
        deviation = math.sqrt((spread + PRIOR * crowd_variance) / weight)
        if deviation < 1e-9 * max(1.0, abs(mean)):
            return 0.0
        return max(-LIMIT, min(LIMIT, (value - mean) / deviation))


def read(connection: Connection) -> Ratings:
    """The last rating of each user on each completion, of the latest ones."""
    query = (
        select(feedback.c.user_hash, feedback.c.completion_id, feedback.c.payload)
        .where(feedback.c.kind == "rating")
        .order_by(feedback.c.accepted_time.desc(), feedback.c.feedback_id.desc())
        .limit(WINDOW)
    )
    last: dict[tuple[str, str], str] = {}
    for row in connection.execute(query):
        last.setdefault((row.user_hash, row.completion_id), row.payload)
    by_user: dict[str, list[float]] = {}
    for (user_hash, _), payload in last.items():
        by_user.setdefault(user_hash, []).append(float(json.loads(payload)["value"]))
    return Ratings(by_user=by_user)
