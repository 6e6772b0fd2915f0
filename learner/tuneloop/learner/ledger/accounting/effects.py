"""What versions changed for the feedback that they learned from: log-probs before and after."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, select

from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.rows import insert_new
from tuneloop.learner.ledger.schema import effects, samples

Part = Literal["answer", "chosen", "rejected"]
"""Which completion of a sample: a thumb's only one, or one of a pair. An edit is the chosen one."""
KEY = ("sample_id", "objective", "part", "policy_version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Log-probs of a completion of a sample, before the step that used it and after."""

    sample_id: str
    objective: str
    part: Part
    tokens: int
    logprob_before: float
    """log π of the whole completion, in nats, before the step."""
    logprob_after: float
    """Under the version that has the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackEffect:
    """What a version changed for a text that feedback is about."""

    policy_version: int
    text: str
    """`answer`, `edit`, `chosen` or `rejected`."""
    completion_id: str
    """Empty for an edit."""
    tokens: int
    logprob_before: float
    logprob_after: float


def add_effects(database: Database, version: int, measured: Sequence[Effect]) -> None:
    """Record what a version of the policy changed."""
    if not measured:
        return
    rows = [
        {
            "sample_id": effect.sample_id,
            "objective": effect.objective,
            "part": effect.part,
            "policy_version": version,
            "tokens": effect.tokens,
            "logprob_before": effect.logprob_before,
            "logprob_after": effect.logprob_after,
        }
        for effect in measured
    ]
    with database.write() as connection:
        insert_new(connection, effects, rows, KEY)


def effects_of(connection: Connection, feedback: Any, made: Any) -> tuple[FeedbackEffect, ...]:
    """Return what versions changed for a row of `feedback`, oldest first.

    `made` selects its samples. Of a thumb it is its own answer, also where a pair taught it; of a
    thumb on a session each turn that was learned from.
    """
    same = (effects.c.sample_id == samples.c.sample_id) & (
        effects.c.objective == samples.c.objective
    )
    query = (
        select(effects, samples.c.kind, samples.c.completion_id, samples.c.rejected_id)
        .join(samples, same)
        .where(made)
        .order_by(effects.c.policy_version, effects.c.part, effects.c.objective)
    )
    found: dict[tuple[int, str, str], FeedbackEffect] = {}
    for row in connection.execute(query):
        text, completion_id = _text_of(row)
        if feedback.kind == "thumb" and not feedback.session_id:
            if completion_id != feedback.completion_id:
                continue
            text = "answer"
        effect = FeedbackEffect(
            policy_version=row.policy_version,
            text=text,
            completion_id=completion_id,
            tokens=row.tokens,
            logprob_before=row.logprob_before,
            logprob_after=row.logprob_after,
        )
        # One text may have been learned from in two ways: an edit by itself and in its pair.
        found.setdefault((row.policy_version, text, completion_id), effect)
    return tuple(found.values())


def _text_of(row: Any) -> tuple[str, str]:
    """Return what a part of a sample is to the user, and its completion id."""
    if row.kind == "edit":
        return ("edit", "") if row.part == "chosen" else ("answer", row.completion_id)
    return row.part, row.rejected_id if row.part == "rejected" else row.completion_id
