"""How far judgements can be trusted: how raters agree, and how well the reward model ranks."""

import json
import math
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise, product

from sqlalchemy import Connection, func, not_, select

from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events.sample_rules import OF_SESSION
from tuneloop.learner.ledger.schema import samples, scores
from tuneloop.learner.samples import Objective, SampleState

WINDOW = 128
"""The number of latest thumbs to use."""
LEAST_OF_EACH = 8
"""The fewest thumbs up, and thumbs down, for a share to mean anything."""

VERDICTS = 4096
"""The number of latest thumbs and comparisons that agreement is computed from."""
PRIOR = 20.0
"""Agreeing pairs of verdicts that are assumed: the estimate starts at 0."""
HIGHEST_FLIP_RATE = 0.4
"""The robust loss divides by 1 − 2ε."""


def flip_rate(connection: Connection) -> float:
    """Return the probability ε that a verdict is flipped, from verdicts on the same thing.

    Two verdicts on one completion (thumbs), or on which of two is better (comparisons, rankings),
    by two users or by one user twice, are two noisy readings of one truth. Each flipped with
    probability ε, they differ with probability d = 2ε(1 − ε), hence ε = (1 − √(1 − 2d)) / 2. `d` is
    shrunk towards 0 as if `PRIOR` more pairs had agreed. Differing tastes count as noise: there is
    one policy for all. What was said of a session is no reading of each of its turns.
    """
    latest = (
        select(
            samples.c.topic,
            samples.c.user_hash,
            samples.c.verdict,
            samples.c.accepted_time,
            samples.c.sample_id,
        )
        .where(
            samples.c.kind.in_(("thumb", "pair")),
            # Each thumb and each pair makes one sample of these.
            samples.c.objective.in_((Objective.KTO, Objective.DPO)),
            samples.c.state.not_in((SampleState.REFUSED, SampleState.RETRACTED)),
            not_(OF_SESSION),
        )
        .order_by(samples.c.accepted_time.desc())
        .limit(VERDICTS)
        .subquery()
    )
    rows = connection.execute(
        select(latest).order_by(
            latest.c.topic, latest.c.user_hash, latest.c.accepted_time, latest.c.sample_id
        )
    ).all()
    pairs = differing = 0.0
    for _, on_topic in groupby(rows, key=lambda row: row.topic):
        by_user = [
            [row.verdict for row in own]
            for _, own in groupby(on_topic, key=lambda row: row.user_hash)
        ]
        for verdicts in by_user:
            pairs += len(verdicts) - 1
            differing += sum(a != b for a, b in pairwise(verdicts))
        weight, share = _disagreement([verdicts[-1] for verdicts in by_user])
        pairs += weight
        differing += weight * share
    return flip_rate_of(differing / (pairs + PRIOR))


def flip_rate_of(disagreement: float) -> float:
    """Return ε for the share `d` of pairs of verdicts that differ."""
    if disagreement >= 0.5:
        return HIGHEST_FLIP_RATE
    return min(HIGHEST_FLIP_RATE, (1 - math.sqrt(1 - 2 * disagreement)) / 2)


def flip_rate_of_siblings(flip_rate: float) -> float:
    """Return the probability that a pair of opposite thumbs is the wrong way round.

    It is if both thumbs are flipped, each with probability ε = `flip_rate`, and right if neither
    is: ε² / (ε² + (1 − ε)²). With one flipped, the user finds both completions good or both bad.
    Such ties need no correction: they come either way round equally often, and then the robust
    loss is the same for every ε.
    """
    both, neither = flip_rate**2, (1 - flip_rate) ** 2
    return both / (both + neither)


def _disagreement(verdicts: Sequence[str]) -> tuple[float, float]:
    """Return how many independent pairs the verdicts are worth, and the share that differs."""
    count = len(verdicts)
    if count < 2:
        return 0.0, 0.0
    sizes: Iterable[int] = (verdicts.count(verdict) for verdict in set(verdicts))
    same = sum(size * (size - 1) for size in sizes)
    return count - 1, 1 - same / (count * (count - 1))


def ranking_accuracy(database: Database) -> float | None:
    """Return the share of pairs (liked, disliked) that the reward model ranked correctly.

    Each answer counts with its first score, given before its thumb was trained on, so this is
    accuracy on unseen data (the area under the ROC curve; a tie counts half). None if there
    are too few thumbs of either kind.
    """
    first = (
        select(scores.c.completion_id, func.min(scores.c.reward_model_version).label("version"))
        .group_by(scores.c.completion_id)
        .subquery()
    )
    query = (
        select(samples.c.verdict, scores.c.results)
        .join(first, first.c.completion_id == samples.c.completion_id)
        .join(
            scores,
            (scores.c.completion_id == first.c.completion_id)
            & (scores.c.reward_model_version == first.c.version),
        )
        .where(
            samples.c.objective == Objective.REWARD_MODEL,
            samples.c.state == SampleState.USED,
            samples.c.kind == "thumb",
            not_(OF_SESSION),
        )
        .order_by(samples.c.accepted_time.desc())
        .limit(WINDOW)
    )
    with database.read() as connection:
        rows = [
            (verdict == "up", reward_model_score(results))
            for verdict, results in connection.execute(query)
        ]
    liked = [score for up, score in rows if up and score is not None]
    disliked = [score for up, score in rows if not up and score is not None]
    if min(len(liked), len(disliked)) < LEAST_OF_EACH:
        return None
    right = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in product(liked, disliked))
    return right / (len(liked) * len(disliked))


def reward_model_score(results: str) -> float | None:
    """Return the reward model's own score among the results of a row."""
    for result in json.loads(results):
        if result["scorer"] == "reward_model" and result["score"] is not None:
            return float(result["score"])
    return None
