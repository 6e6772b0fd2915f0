"""Put ratings on one scale: standard deviations from the mean of the user who gave them.

So are the values of a metric that is a reward: each metric on a scale of its own.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, select

from tuneloop.feedback import PUBLIC_ID
from tuneloop.learner.ledger.schema import feedback

PRIOR = 1.0
"""The number of ratings of the crowd that each user starts with."""
LIMIT = 3.0
"""The most standard deviations that a rating counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The mean and spread of ratings."""

    mean: float
    deviation: float

    def standardised(self, value: float) -> float:
        """Return a rating in standard deviations, at most `LIMIT`; 0 if all ratings are equal."""
        if self.deviation < 1e-9 * max(1.0, abs(self.mean)):
            return 0.0
        return max(-LIMIT, min(LIMIT, (value - self.mean) / self.deviation))


def scale_of(ratings: Sequence[float], crowd: Scale | None = None) -> Scale:
    """Return mean and deviation of ratings and of `PRIOR` more that are spread like `crowd`.

    With n ratings and the crowd's mean m₀ and variance v₀, both divided by n + PRIOR:
    mean = (Σ r + PRIOR·m₀), variance = (Σ (r − mean)² + PRIOR·(v₀ + (m₀ − mean)²)).
    """
    prior = 0.0 if crowd is None else PRIOR
    crowd = crowd or Scale(mean=0.0, deviation=0.0)
    weight = len(ratings) + prior
    if weight == 0:
        return crowd
    mean = (math.fsum(ratings) + prior * crowd.mean) / weight
    spread = math.fsum((rating - mean) ** 2 for rating in ratings)
    spread += prior * (crowd.deviation**2 + (crowd.mean - mean) ** 2)
    return Scale(mean=mean, deviation=math.sqrt(spread / weight))


class Ratings:
    """Every user's ratings, each user on a scale of their own."""

    def __init__(self, by_user: Mapping[str, Sequence[float]]) -> None:
        self._crowd = scale_of([rating for given in by_user.values() for rating in given])
        self._scales = {user: scale_of(given, self._crowd) for user, given in by_user.items()}

    def standardised(self, user: str, value: float) -> float:
        """Return a rating in deviations from its user's mean; the crowd's for unknown users."""
        return self._scales.get(user, self._crowd).standardised(value)


WINDOW = 8192
"""The number of latest ratings to use."""


RATED = feedback.c.kind == "rating"


def measured(name: str, *, is_boolean: bool) -> ColumnElement[bool]:
    """Return the condition "a value of that metric", the booleans or the numbers of that name.

    Those that a web page sent without a key are no rewards, and move no reward's scale.
    """
    return and_(
        feedback.c.metric == name,
        feedback.c.is_boolean == is_boolean,
        feedback.c.api_key_id != PUBLIC_ID,
    )


def read(connection: Connection, which: ColumnElement[bool] = RATED) -> Ratings:
    """Read the last rating of each user on each completion or session, among the latest ones.

    Or of `which` feedback that has a value.
    """
    about = (feedback.c.completion_id, feedback.c.session_id)
    query = (
        select(feedback.c.user_hash, *about, feedback.c.payload)
        .where(which, feedback.c.status != "retracted")
        .order_by(feedback.c.accepted_time.desc(), feedback.c.feedback_id.desc())
        .limit(WINDOW)
    )
    last: dict[tuple[str, str, str], str] = {}
    for row in connection.execute(query):
        # The turn that a session's rating is counted on changes while it goes on.
        completion_id = "" if row.session_id else row.completion_id
        last.setdefault((row.user_hash, row.session_id, completion_id), row.payload)
    by_user: dict[str, list[float]] = {}
    for (user_hash, _, _), payload in last.items():
        by_user.setdefault(user_hash, []).append(float(json.loads(payload)["value"]))
    return Ratings(by_user)
