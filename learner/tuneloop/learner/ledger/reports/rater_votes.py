"""Who judged what, for the guards: votes on the same things, and whose a batch's samples are."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, func, not_, select

from tuneloop.learner.guards.raters import Vote
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events.sample_rules import LEARNED_FROM, OF_SESSION
from tuneloop.learner.ledger.rows import unpack_logprobs
from tuneloop.learner.ledger.schema import feedback, rollouts, samples, scores
from tuneloop.learner.samples import Objective, SampleState
from tuneloop.rollouts import RolloutSource

VOTES = 4096
"""The number of latest thumbs and comparisons that raters are judged by."""
ROWS_AT_ONCE = 500
REWARD_MODEL = "reward model"
"""The reward model as a rater. No user's hash has a space."""

IS_JUDGEMENT = and_(LEARNED_FROM, feedback.c.sequence > 0)
"""Feedback that can be learned from and that a user gave; the sequence of imports is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The user and the tenant of a sample."""

    user: str
    """Empty for prompts of the service itself."""
    tenant: str
    has_judged: bool
    """Whether the sample is a judgement of the user, not a rollout that the user asked for."""


def votes(database: Database) -> list[Vote]:
    """Return the latest votes in order, and the reward model's votes on the same things.

    What was said of a session is no vote on each of its turns.

    The reward model votes with its first score of an answer, from before it learned from the
    thumbs on it, compared with its other scores: it calls as many good as people do.
    """
    latest = (
        select(
            samples.c.topic,
            samples.c.user_hash,
            samples.c.verdict,
            samples.c.accepted_time,
            samples.c.features,
        )
        .where(
            samples.c.kind.in_(("thumb", "pair")),
            # Each thumb and each pair makes one sample of these.
            samples.c.objective.in_((Objective.KTO, Objective.DPO)),
            samples.c.state.not_in((SampleState.REFUSED, SampleState.RETRACTED)),
            not_(OF_SESSION),
        )
        .order_by(samples.c.accepted_time.desc(), samples.c.sample_id.desc())
        .limit(VOTES)
    )
    with database.read() as connection:
        rows = connection.execute(latest).all()[::-1]
        given = [vote_of(r.topic, r.user_hash, r.verdict, r.features) for r in rows]
        first = _first_scores(connection, {i for vote in given for i in judged(vote.topic)})
    return given + machine_votes(given, first)


def vote_of(topic: str, rater: str, verdict: str, features: bytes | None = None) -> Vote:
    """Return the vote of a row. A pair's features are of the chosen answer minus the other."""
    family, _, about = topic.partition(":")
    up = verdict == "up" if family == "thumb" else verdict == about.split("|")[0]
    known = unpack_logprobs(features or b"")
    if family == "pair" and not up:
        known = tuple(-number for number in known)
    return Vote(topic=topic, rater=rater, up=up, family=family, features=known)


def judged(topic: str) -> list[str]:
    """Return the completions a topic is about."""
    return topic.partition(":")[2].split("|")


def machine_votes(given: Sequence[Vote], score: Mapping[str, float]) -> list[Vote]:
    """Return the reward model's votes on the topics of `given` whose completions it scored."""
    thumbs = {vote.topic: vote for vote in given if vote.family == "thumb"}
    scored = [score[i] for topic in thumbs for i in judged(topic) if i in score]
    threshold = 0.0
    if scored:
        ups = statistics.fmean(vote.up for vote in given if vote.family == "thumb")
        threshold = sorted(scored)[min(len(scored) - 1, round((1 - ups) * len(scored)))]
    found: list[Vote] = []
    for topic, family in {vote.topic: vote.family for vote in given}.items():
        known = [score[i] for i in judged(topic) if i in score]
        if family == "thumb" and known:
            up = known[0] >= threshold
        elif len(known) == 2 and known[0] != known[1]:
            up = known[0] > known[1]
        else:
            continue
        found.append(Vote(topic=topic, rater=REWARD_MODEL, up=up, family=family))
    return found


def _first_scores(connection: Connection, completion_ids: set[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    ids = sorted(completion_ids)
    for start in range(0, len(ids), ROWS_AT_ONCE):
        query = (
            select(scores.c.completion_id, scores.c.results)
            .where(scores.c.completion_id.in_(ids[start : start + ROWS_AT_ONCE]))
            .order_by(scores.c.reward_model_version)
        )
        for row in connection.execute(query):
            score = informed_score(row.results)
            if score is not None:
                found.setdefault(row.completion_id, score)
    return found


def informed_score(results: str) -> float | None:
    """Return the reward model's own informative score among the results of a row, or None."""
    for result in json.loads(results):
        if result["scorer"] == "reward_model" and result["informative"]:
            return None if result["score"] is None else float(result["score"])
    return None


def active(database: Database, window: int) -> tuple[int, int]:
    """Return how many users and how many tenants gave the latest feedback."""
    latest = (
        select(feedback.c.user_hash, feedback.c.tenant)
        .where(feedback.c.status != "retracted")
        .order_by(feedback.c.accepted_time.desc(), feedback.c.feedback_id.desc())
        .limit(window)
        .subquery()
    )
    counted = select(
        func.count(latest.c.user_hash.distinct()), func.count(latest.c.tenant.distinct())
    )
    with database.read() as connection:
        users, tenants = connection.execute(counted).one()
    return users, tenants


def given_by_user(database: Database, since: float) -> dict[str, int]:
    """Return how many judgements each user has given since a time, retracted ones too."""
    query = (
        select(feedback.c.user_hash, func.count())
        .where(feedback.c.accepted_time > since, IS_JUDGEMENT)
        .group_by(feedback.c.user_hash)
    )
    with database.read() as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


def numbers(
    database: Database, objective: str, sample_ids: Sequence[str], seconds: float
) -> dict[str, int]:
    """Return which of its user's judgements each sample is, counted over `seconds` up to it.

    What they wrote after an answer counts as one if it made a hint.
    Samples that nobody judged (scored rollouts), and imported ones, are left out.
    """
    earlier = (
        select(func.count())
        .where(
            feedback.c.user_hash == samples.c.user_hash,
            feedback.c.accepted_time <= samples.c.accepted_time,
            feedback.c.accepted_time > samples.c.accepted_time - seconds,
            IS_JUDGEMENT,
        )
        .correlate(samples)
        .scalar_subquery()
    )
    implied = samples.alias("implied")
    hinted = (
        select(func.count())
        .where(
            implied.c.kind == "follow_up",
            implied.c.user_hash == samples.c.user_hash,
            implied.c.accepted_time <= samples.c.accepted_time,
            implied.c.accepted_time > samples.c.accepted_time - seconds,
        )
        .correlate(samples)
        .scalar_subquery()
    )
    query = (
        select(samples.c.sample_id, (earlier + hinted).label("number"))
        .join(rollouts, rollouts.c.completion_id == samples.c.completion_id)
        .where(
            samples.c.objective == objective,
            samples.c.sample_id.in_(sample_ids),
            samples.c.user_hash != "",
            rollouts.c.source != RolloutSource.IMPORT.value,
        )
    )
    with database.read() as connection:
        return {row.sample_id: row.number for row in connection.execute(query)}


def owners(database: Database, objective: str, sample_ids: Sequence[str]) -> dict[str, Owner]:
    """Return the owner of each sample: who judged, or for a scored rollout who asked."""
    query = (
        select(samples.c.sample_id, samples.c.user_hash, rollouts.c.tenant, rollouts.c.source)
        .add_columns(rollouts.c.user_hash.label("asker"))
        .join(rollouts, rollouts.c.completion_id == samples.c.completion_id)
        .where(samples.c.objective == objective, samples.c.sample_id.in_(sample_ids))
    )
    own = (RolloutSource.PROMPTS.value, RolloutSource.EVAL.value)
    with database.read() as connection:
        return {
            row.sample_id: Owner(
                user=row.user_hash or ("" if row.source in own else row.asker),
                tenant=row.tenant,
                has_judged=bool(row.user_hash),
            )
            for row in connection.execute(query)
        }
