"""Samples that can be trained on now: their event and every rollout it speaks of are recorded."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select, update

from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.rows import unpack_ids, unpack_logprobs
from tuneloop.learner.ledger.schema import rollouts, samples, scores, uses
from tuneloop.learner.samples import (
    LabelledText,
    PairSample,
    PolicySample,
    PreferredText,
    RewardSample,
    ScoredSample,
    ThumbSample,
    TokenSequence,
)
from tuneloop.models.reward_text import prompt_as_text
from tuneloop.rollouts import ChatMessage, FinishReason

Sample = PolicySample | RewardSample

chosen = rollouts.alias("chosen")
rejected = rollouts.alias("rejected")


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """How many samples of an objective are ready, and since when the first of them has been."""

    count: int
    oldest_time: float | None
    """Seconds since the epoch at which the oldest ready one was recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCounts:
    """Samples of one objective."""

    ready: int
    waiting: int
    """Recorded, but a rollout it speaks of is not."""
    used: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A sample that can never be trained on, and why."""

    sample_id: str
    objective: str
    reason: str


def readiness(database: Database, objective: str, exclude: Collection[str] = ()) -> Readiness:
    """Count the ready samples of an objective, without those in `exclude`."""
    query = _ready(objective, func.count(), func.min(samples.c.recorded_time))
    if exclude:
        query = query.where(samples.c.sample_id.not_in(list(exclude)))
    with database.read() as connection:
        count, oldest = connection.execute(query).one()
    return Readiness(count=count, oldest_time=oldest)


def counts(database: Database, objective: str) -> SampleCounts:
    """Ready, waiting and used samples of an objective."""
    ready = readiness(database, objective).count
    all_open = select(func.count()).where(
        samples.c.objective == objective, samples.c.state == "open"
    )
    all_used = select(func.count()).where(uses.c.objective == objective)
    with database.read() as connection:
        waiting = connection.execute(all_open).scalar_one() - ready
        used = connection.execute(all_used).scalar_one()
    return SampleCounts(ready=ready, waiting=waiting, used=used)


def take(
    database: Database,
    objective: str,
    limit: int,
    *,
    exclude: Collection[str] = (),
) -> tuple[list[Sample], list[Refusal]]:
    """The oldest ready samples of an objective, at most `limit`, without those in `exclude`.

    Taking changes nothing: a sample is used when the step that used it is committed. The second
    list names ready samples that cannot be trained on.
    """
    columns = [*samples.c, *(c.label(f"chosen_{c.name}") for c in chosen.c)]
    columns += [c.label(f"rejected_{c.name}") for c in rejected.c if c.name != "completion_id"]
    query = _ready(objective, *columns)
    query = query.order_by(samples.c.accepted_time, samples.c.sample_id)
    if exclude:
        query = query.where(samples.c.sample_id.not_in(list(exclude)))
    taken: list[Sample] = []
    refusals: list[Refusal] = []
    with database.read() as connection:
        for row in connection.execute(query.limit(limit)):
            problem = _problem(row)
            if problem is not None:
                refusals.append(
                    Refusal(sample_id=row.sample_id, objective=objective, reason=problem)
                )
            else:
                taken.append(_build(connection, row))
    return taken, refusals


def refuse(database: Database, refusals: Sequence[Refusal]) -> None:
    """Take samples out for good, with the reason kept beside them."""
    with database.write() as connection:
        for refusal in refusals:
            connection.execute(
                update(samples)
                .where(
                    samples.c.sample_id == refusal.sample_id,
                    samples.c.objective == refusal.objective,
                    samples.c.state == "open",
                )
                .values(state="refused", note=refusal.reason)
            )


def mark_stale(database: Database, oldest_allowed: int, exclude: Collection[str] = ()) -> int:
    """Take out PPO samples with tokens of versions below `oldest_allowed`; how many there were."""
    old = (
        select(samples.c.sample_id)
        .join(rollouts, rollouts.c.completion_id == samples.c.completion_id)
        .where(
            samples.c.objective == "ppo",
            samples.c.state == "open",
            rollouts.c.oldest_version < oldest_allowed,
        )
    )
    with database.read() as connection:
        stale = set(connection.execute(old).scalars()) - set(exclude)
    if stale:
        with database.write() as connection:
            for sample_id in stale:
                connection.execute(
                    update(samples)
                    .where(samples.c.sample_id == sample_id, samples.c.objective == "ppo")
                    .values(state="stale")
                )
    return len(stale)


def _ready(objective: str, *columns: ColumnElement[Any]) -> Any:
    """Select from the open samples of an objective whose rollouts are all there."""
    return (
        select(*columns)
        .select_from(samples)
        .join(chosen, chosen.c.completion_id == samples.c.completion_id)
        .outerjoin(rejected, rejected.c.completion_id == samples.c.rejected_id)
        .where(
            samples.c.objective == objective,
            samples.c.state == "open",
            samples.c.rejected_id.is_(None) | rejected.c.completion_id.is_not(None),
        )
    )


def _problem(row: Any) -> str | None:
    """Why a ready sample cannot be trained on, or None."""
    if row.rejected_id is not None:
        if row.rejected_id == row.completion_id:
            return "a completion compared with itself"
        if row.chosen_prompt_tokens != row.rejected_prompt_tokens:
            return "the completions answer different prompts"
    if row.objective == "ppo" and row.chosen_temperature == 0:
        return "sampled greedily: no importance ratio is defined"
    return None


def _build(connection: Connection, row: Any) -> Sample:
    match row.objective:
        case "kto":
            return ThumbSample(
                sample_id=row.sample_id, sequence=_sequence(row, "chosen"), desirable=row.up
            )
        case "dpo":
            return PairSample(
                sample_id=row.sample_id,
                chosen=_sequence(row, "chosen"),
                rejected=_sequence(row, "rejected"),
            )
        case "ppo":
            return ScoredSample(
                sample_id=row.sample_id,
                sequence=_sequence(row, "chosen"),
                reward=_reward(connection, row.completion_id),
                policy_version=row.chosen_oldest_version,
                stopped=row.chosen_finish_reason == FinishReason.STOP,
            )
    if row.rejected_id is None:
        return LabelledText(
            sample_id=row.sample_id,
            prompt=_prompt(row),
            completion=row.chosen_completion_text,
            desirable=row.up,
        )
    return PreferredText(
        sample_id=row.sample_id,
        prompt=_prompt(row),
        chosen=row.chosen_completion_text,
        rejected=row.rejected_completion_text,
    )


def _sequence(row: Any, which: str) -> TokenSequence:
    columns = row._mapping
    return TokenSequence(
        prompt_token_ids=unpack_ids(columns[f"{which}_prompt_tokens"]),
        completion_token_ids=unpack_ids(columns[f"{which}_completion_tokens"]),
        generation_logprobs=unpack_logprobs(columns[f"{which}_generation_logprobs"]),
        # At temperature 0 no scale is defined; preferences are compared at the model's own.
        temperature=columns[f"{which}_temperature"] or 1.0,
    )


def _prompt(row: Any) -> str:
    turns = json.loads(row.chosen_messages)
    messages = [ChatMessage(role=role, content=content) for role, content in turns]
    return prompt_as_text(messages, row.chosen_prompt_text)


def _reward(connection: Connection, completion_id: str) -> float:
    """The reward by the newest reward model among the scores that count most."""
    query = (
        select(scores.c.reward)
        .where(scores.c.completion_id == completion_id, scores.c.reward.is_not(None))
        .order_by(scores.c.informative.desc(), scores.c.reward_model_version.desc())
        .limit(1)
    )
    return float(connection.execute(query).scalar_one())
