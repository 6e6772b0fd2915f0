"""Convert domain values to ledger rows and back. Only this module knows how columns are encoded."""

import dataclasses
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    Text,
    TypeDecorator,
    and_,
    exists,
    literal,
    select,
    true,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from tuneloop.feedback import Feedback, Metric, Thumb
from tuneloop.rollouts import Rollout, ScoredRollout

Row = dict[str, Any]
"""A row to insert, by column."""


class PlainText(TypeDecorator[str]):
    """Text of users and models, which may contain NUL; Postgres cannot store it."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        """Replace NUL."""
        return None if value is None else plain(value)


def plain(text: str) -> str:
    """Return `text` with the replacement character in the place of NUL."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


class pairs_of(FunctionElement[Any]):
    """The names and values of a JSON object of texts, as rows `key` and `value`."""

    name = "pairs_of"
    inherit_cache = True


@compiles(pairs_of, "sqlite")
def sqlite_pairs(element: Any, compiler: Any, **options: Any) -> str:
    """Return SQLite's function."""
    return f"json_each({compiler.process(element.clauses, **options)})"


@compiles(pairs_of, "postgresql")
def postgres_pairs(element: Any, compiler: Any, **options: Any) -> str:
    """Return Postgres's function."""
    return f"json_each_text(CAST({compiler.process(element.clauses, **options)} AS JSON))"


def has_tags(column: ColumnElement[Any], tags: Mapping[str, str]) -> ColumnElement[bool]:
    """Select the rows whose column of tags has all of these."""
    conditions = []
    for name, value in tags.items():
        pair = pairs_of(column).table_valued("key", "value")
        conditions.append(
            exists(
                select(literal(1))
                .select_from(pair)
                .where(pair.c.key == name, pair.c.value == value)
            )
        )
    return and_(true(), *conditions)


def pack_ids(values: Sequence[int]) -> bytes:
    """Encode token ids as little-endian int32."""
    return struct.pack(f"<{len(values)}i", *values)


def unpack_ids(blob: bytes) -> tuple[int, ...]:
    """Decode token ids of `pack_ids`."""
    return struct.unpack(f"<{len(blob) // 4}i", blob)


def answer_tokens(completion: bytes, reasoning_tokens: int) -> bytes:
    """Return the token ids of `pack_ids` of a completion without those of its thought."""
    return completion[4 * reasoning_tokens :]


def pack_logprobs(values: Sequence[float]) -> bytes:
    """Encode log-probs as little-endian float32, as on the wire."""
    return struct.pack(f"<{len(values)}f", *values)


def unpack_logprobs(blob: bytes) -> tuple[float, ...]:
    """Decode log-probs of `pack_logprobs`."""
    return struct.unpack(f"<{len(blob) // 4}f", blob)


def prompt_sha256(prompt_token_ids: Sequence[int]) -> str:
    """Return the hash that identifies a prompt, independent of its sender."""
    return hashlib.sha256(pack_ids(prompt_token_ids)).hexdigest()


def compact(value: Any) -> str:
    """Return a value as JSON without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def moment(seconds: float) -> datetime:
    """Return the aware datetime of a time column."""
    return datetime.fromtimestamp(seconds, UTC)


def rollout_row(rollout: Rollout) -> Row:
    """Return a row of `rollouts`."""
    sampling = dataclasses.asdict(rollout.sampling)
    return {
        "completion_id": rollout.completion_id,
        "group_id": rollout.group_id,
        "policy": rollout.policy,
        "tenant": rollout.tenant,
        "user_hash": rollout.user_hash,
        "messages": compact([[m.role, m.content] for m in rollout.messages]),
        "prompt_text": rollout.prompt_text,
        "completion_text": rollout.completion_text,
        "prompt_tokens": pack_ids(rollout.prompt_token_ids),
        "completion_tokens": pack_ids(rollout.completion_token_ids),
        "generation_logprobs": pack_logprobs(rollout.generation_logprobs),
        "spans": compact(
            [[s.policy_version, s.start, s.end] for s in rollout.policy_version_spans]
        ),
        "oldest_version": rollout.oldest_policy_version,
        "policy_version": rollout.policy_version,
        "finish_reason": rollout.finish_reason.value,
        "temperature": rollout.sampling.temperature,
        "sampling": compact(sampling),
        "finished_time": rollout.finished_time.timestamp(),
        "source": rollout.source.value,
        "columns": compact(dict(rollout.columns)),
        "group_size": rollout.sampling.n,
        "prompt_sha256": prompt_sha256(rollout.prompt_token_ids),
        "session_id": rollout.session_id,
        "reasoning_text": rollout.reasoning_text,
        "reasoning_tokens": rollout.reasoning_tokens,
        "tags": compact({plain(name): plain(value) for name, value in rollout.tags.items()}),
    }


def feedback_row(feedback: Feedback, sequence: int) -> Row:
    """Return a row of `feedback`."""
    judgement = feedback.judgement
    metric = judgement if isinstance(judgement, Metric) else None
    return {
        "feedback_id": feedback.feedback_id,
        "kind": feedback.kind.value,
        "tenant": feedback.tenant,
        "user_hash": feedback.user_hash,
        "session_id": feedback.session_id,
        "completion_id": feedback.completion_id,
        "completion_ids": compact(list(feedback.completion_ids)),
        "payload": compact(dataclasses.asdict(judgement)),
        "up": judgement.up if isinstance(judgement, Thumb) else None,
        "metric": None if metric is None else metric.name,
        "measured": None if metric is None else float(metric.value),
        "is_boolean": None if metric is None else isinstance(metric.value, bool),
        "metadata": compact(dict(feedback.metadata)),
        "api_key_id": feedback.api_key_id,
        "api_key_name": feedback.api_key_name,
        "accepted_time": feedback.accepted_time.timestamp(),
        "sequence": sequence,
    }


def score_row(scored: ScoredRollout) -> Row:
    """Return a row of `scores`."""
    return {
        "completion_id": scored.completion_id,
        "reward_model_version": scored.reward_model_version,
        "reward": scored.score.reward,
        "informative": scored.score.informative,
        "results": compact([dataclasses.asdict(result) for result in scored.score.results]),
        "scored_time": scored.scored_time.timestamp(),
    }


def insert_new(
    connection: Connection, table: Table, rows: Sequence[Row], key: Sequence[str]
) -> list[Row]:
    """Insert the rows whose `key` is new and return them. The first row of a key wins."""
    if not rows:
        return []
    first = {tuple(row[name] for name in key): row for row in reversed(rows)}
    columns = [table.c[name] for name in key]
    candidates = select(*columns).where(columns[0].in_([row[key[0]] for row in rows]))
    known = {tuple(found) for found in connection.execute(candidates)}
    new = [row for identity, row in reversed(first.items()) if identity not in known]
    if new:
        connection.execute(table.insert(), new)
    return new
