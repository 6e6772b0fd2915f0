"""How versions answer the eval prompts: their answers are rollouts of their own source.

Intervals are of the mean over prompts, 1.96 standard errors either way. KL is that of the version
to the reference policy by token, estimated on its own samples: mean of log π − log π_ref.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select

from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.queue import ref_logprobs
from tuneloop.learner.ledger.rows import unpack_ids, unpack_logprobs
from tuneloop.learner.ledger.schema import rollouts, scores
from tuneloop.learner.samples import TokenSequence
from tuneloop.learner.stats.intervals import MeanWithMargin
from tuneloop.rollouts import RolloutSource

ANSWERS = 512
"""The number of latest answers whose reference log-probs are filled in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationAnswer:
    """One answer to an eval prompt."""

    policy_version: int
    prompt_sha256: str
    prompt: str
    completion: str
    sequence: TokenSequence
    """With reference log-probs once they are known."""
    reward: float | None
    reward_model_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The figures of a version's answers."""

    policy_version: int
    prompts: int
    scored: int
    reward: MeanWithMargin | None
    """None before an answer was scored."""
    length: MeanWithMargin
    """Of answers, in tokens."""
    thought_length: MeanWithMargin
    """Of the thoughts before them."""
    kl: float | None
    """In nats per token; None before the reference log-probs of every answer are known."""
    reward_model_version: int
    """The reward model that scored last; only rewards of one reward model compare."""


def evaluate(database: Database, version: int) -> Evaluation | None:
    """Return the figures of a version; None if it answered nothing."""
    found = answers(database, version)
    if not found:
        return None
    rewards = [answer.reward for answer in found if answer.reward is not None]
    thoughts = [answer.sequence.reasoning_tokens for answer in found]
    whole = [len(answer.sequence.completion_token_ids) for answer in found]
    return Evaluation(
        policy_version=version,
        prompts=len(found),
        scored=len(rewards),
        reward=MeanWithMargin.of(rewards) if rewards else None,
        length=MeanWithMargin.of([float(a - b) for a, b in zip(whole, thoughts, strict=True)]),
        thought_length=MeanWithMargin.of([float(count) for count in thoughts]),
        kl=_kl([answer.sequence for answer in found]),
        reward_model_version=max(answer.reward_model_version for answer in found),
    )


def newest_evaluated(database: Database) -> int | None:
    """Return the newest version that answered an eval prompt."""
    query = select(func.max(rollouts.c.policy_version)).where(
        rollouts.c.source == RolloutSource.EVAL.value
    )
    with database.read() as connection:
        newest: int | None = connection.execute(query).scalar_one()
    return newest


def answers_recorded(database: Database) -> int:
    """Count the answers of all versions."""
    query = select(func.count()).where(rollouts.c.source == RolloutSource.EVAL.value)
    with database.read() as connection:
        return int(connection.execute(query).scalar_one())


def answered(database: Database, version: int) -> set[str]:
    """Return the completion ids of a version's answers."""
    query = select(rollouts.c.completion_id).where(
        rollouts.c.source == RolloutSource.EVAL.value, rollouts.c.policy_version == version
    )
    with database.read() as connection:
        return set(connection.execute(query).scalars())


def answers(database: Database, version: int) -> list[EvaluationAnswer]:
    """Return a version's answers by prompt, each with its newest score."""
    of_version = select(rollouts.c.completion_id).where(
        rollouts.c.source == RolloutSource.EVAL.value, rollouts.c.policy_version == version
    )
    newest = (
        select(scores.c.completion_id, func.max(scores.c.reward_model_version).label("version"))
        .where(scores.c.completion_id.in_(of_version))
        .group_by(scores.c.completion_id)
        .subquery()
    )
    query = (
        select(rollouts, scores.c.reward, scores.c.reward_model_version)
        .outerjoin(newest, newest.c.completion_id == rollouts.c.completion_id)
        .outerjoin(
            scores,
            (scores.c.completion_id == newest.c.completion_id)
            & (scores.c.reward_model_version == newest.c.version),
        )
        .where(rollouts.c.source == RolloutSource.EVAL.value, rollouts.c.policy_version == version)
        .order_by(rollouts.c.completion_id)
    )
    with database.read() as connection:
        rows = connection.execute(query).all()
    sequences = [_sequence(row) for row in rows]
    known = ref_logprobs.load_logprobs(database, map(ref_logprobs.key_of, sequences))
    return [
        EvaluationAnswer(
            policy_version=version,
            prompt_sha256=row.prompt_sha256,
            prompt=row.prompt_text,
            completion=row.completion_text,
            sequence=ref_logprobs.filled(sequence, known),
            reward=row.reward,
            reward_model_version=row.reward_model_version or 0,
        )
        for row, sequence in zip(rows, sequences, strict=True)
    ]


def without_reference(database: Database) -> Mapping[str, TokenSequence]:
    """Return the latest answers whose reference log-probs are not known yet, by key."""
    query = (
        select(rollouts)
        .where(rollouts.c.source == RolloutSource.EVAL.value)
        .order_by(rollouts.c.finished_time.desc())
        .limit(ANSWERS)
    )
    with database.read() as connection:
        sequences = [_sequence(row) for row in connection.execute(query)]
    keys = {ref_logprobs.key_of(sequence): sequence for sequence in sequences}
    known = ref_logprobs.load_logprobs(database, keys)
    return {key: sequence for key, sequence in keys.items() if key not in known}


def _sequence(row: Any) -> TokenSequence:
    return TokenSequence(
        prompt_token_ids=unpack_ids(row.prompt_tokens),
        completion_token_ids=unpack_ids(row.completion_tokens),
        generation_logprobs=unpack_logprobs(row.generation_logprobs),
        temperature=row.temperature or 1.0,
        reasoning_tokens=row.reasoning_tokens,
    )


def _kl(sequences: Sequence[TokenSequence]) -> float | None:
    if not all(sequence.ref_logprobs for sequence in sequences):
        return None
    differences = [
        sampled - reference
        for sequence in sequences
        for sampled, reference in zip(
            sequence.generation_logprobs, sequence.ref_logprobs, strict=True
        )
    ]
    return math.fsum(differences) / len(differences)


def newest_evaluation(database: Database) -> Evaluation | None:
    """Return the newest version's evaluation."""
    version = newest_evaluated(database)
    return None if version is None else evaluate(database, version)
