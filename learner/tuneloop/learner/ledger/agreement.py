"""How well the reward model ranked answers before it learned their thumbs."""

import json
from itertools import product

from sqlalchemy import func, select

from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.schema import samples, scores

WINDOW = 128
"""Latest thumbs that are looked at."""
LEAST_OF_EACH = 8
"""Thumbs up, and thumbs down, below which the share says too little."""


def ranking_accuracy(database: Database) -> float | None:
    """Share of pairs of one liked and one disliked answer that the reward model ranked right.

    Each answer counts with its first score, given before its thumb was trained on, so this is
    accuracy on unseen data (the area under the ROC curve; a tie counts half). None where there are
    too few thumbs of either kind.
    """
    first = (
        select(scores.c.completion_id, func.min(scores.c.reward_model_version).label("version"))
        .group_by(scores.c.completion_id)
        .subquery()
    )
    query = (
        select(samples.c.up, scores.c.results)
        .join(first, first.c.completion_id == samples.c.completion_id)
        .join(
            scores,
            (scores.c.completion_id == first.c.completion_id)
            & (scores.c.reward_model_version == first.c.version),
        )
        .where(
            samples.c.objective == "reward_model",
            samples.c.state == "used",
            samples.c.up.is_not(None),
        )
        .order_by(samples.c.accepted_time.desc())
        .limit(WINDOW)
    )
    with database.read() as connection:
        rows = [
            (bool(up), reward_model_score(results)) for up, results in connection.execute(query)
        ]
    liked = [score for up, score in rows if up and score is not None]
    disliked = [score for up, score in rows if not up and score is not None]
    if min(len(liked), len(disliked)) < LEAST_OF_EACH:
        return None
    right = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in product(liked, disliked))
    return right / (len(liked) * len(disliked))


def reward_model_score(results: str) -> float | None:
    """The reward model's own score among the results of a row."""
    for result in json.loads(results):
        if result["scorer"] == "reward_model" and result["score"] is not None:
            return float(result["score"])
    return None
