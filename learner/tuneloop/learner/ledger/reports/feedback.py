"""Feedback as people browse it: newest first, with its texts and the versions that used it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, and_, or_, select

from tuneloop.errors import InvalidRequest
from tuneloop.feedback import Feedback, FeedbackKind, FeedbackStatus, type_of_kind
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.rows import has_tags, moment
from tuneloop.learner.ledger.schema import feedback, rollouts, samples, uses
from tuneloop.learner.samples import ModelRole
from tuneloop.rollouts import ChatMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackFilters:
    """What to list; None does not filter."""

    kind: FeedbackKind | None = None
    up: bool | None = None
    """Only thumbs of this value."""
    policy_version: int | None = None
    user_hash: str | None = None
    status: FeedbackStatus | None = None
    feedback_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    """Of the request that was answered; all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedCompletion:
    """A completion that feedback refers to."""

    completion_id: str
    text: str
    policy_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackEntry:
    """Feedback with what is known of it."""

    feedback: Feedback
    status: FeedbackStatus
    messages: tuple[ChatMessage, ...] = ()
    prompt_text: str = ""
    """Empty until a rollout it refers to is recorded."""
    completions: tuple[JudgedCompletion, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    """Of the request that was answered; of several answers the chosen or first one's."""
    used_by_versions: tuple[int, ...] = field(default=())


def browse(
    database: Database, policy: str, filters: FeedbackFilters, *, limit: int, before: str = ""
) -> tuple[list[FeedbackEntry], str]:
    """Return at most `limit`, newest first, and where the next page begins (empty on the last).

    Raises `InvalidRequest` if `before` is not such a place.
    """
    query = select(feedback).order_by(
        feedback.c.accepted_time.desc(), feedback.c.feedback_id.desc()
    )
    if before:
        seconds, feedback_id = place_of(before)
        query = query.where(
            or_(
                feedback.c.accepted_time < seconds,
                and_(feedback.c.accepted_time == seconds, feedback.c.feedback_id < feedback_id),
            )
        )
    for column, value in (
        (feedback.c.kind, filters.kind),
        (feedback.c.up, filters.up),
        (feedback.c.user_hash, filters.user_hash),
        (feedback.c.status, filters.status),
        (feedback.c.feedback_id, filters.feedback_id),
    ):
        if value is not None:
            query = query.where(column == value)
    if filters.policy_version is not None or filters.tags:
        query = query.join(rollouts, rollouts.c.completion_id == feedback.c.completion_id)
        query = query.where(has_tags(rollouts.c.tags, filters.tags))
    if filters.policy_version is not None:
        query = query.where(rollouts.c.policy_version == filters.policy_version)
    with database.read() as connection:
        rows = connection.execute(query.limit(limit + 1)).all()
        items = described(connection, policy, rows[:limit])
    last = rows[limit - 1] if len(rows) > limit else None
    return items, "" if last is None else f"{last.accepted_time!r}.{last.feedback_id}"


def newest_sequence(database: Database, since: float, before: float) -> int:
    """Return the place in the stream of the newest feedback of a time, or 0.

    `since` is when the stream was made: places in an earlier one were counted from 1 too.
    """
    query = (
        select(feedback.c.sequence)
        .where(
            feedback.c.accepted_time >= since,
            feedback.c.accepted_time < before,
            feedback.c.sequence > 0,
        )
        .order_by(feedback.c.accepted_time.desc())
        .limit(1)
    )
    with database.read() as connection:
        return int(connection.execute(query).scalar() or 0)


def place_of(before: str) -> tuple[float, str]:
    """Return time and id of a place between pages; ids have no dots."""
    seconds, _, feedback_id = before.rpartition(".")
    try:
        return float(seconds), feedback_id
    except ValueError as error:
        raise InvalidRequest("before: not a `next` of this list", param="before") from error


def described(connection: Connection, policy: str, rows: Sequence[Any]) -> list[FeedbackEntry]:
    """Return rows of `feedback` with the rollouts they refer to and the versions that used them."""
    named = {row.feedback_id: json.loads(row.completion_ids) for row in rows}
    ids = sorted({completion for several in named.values() for completion in several})
    texts = ("messages", "prompt_text", "completion_text")
    columns = ("completion_id", *texts, "policy_version", "tags")
    query = select(*(rollouts.c[name] for name in columns)).where(rollouts.c.completion_id.in_(ids))
    known = {row.completion_id: row for row in connection.execute(query)}
    used = versions_by_feedback(connection, rows)
    items = []
    for row in rows:
        found = [known[i] for i in named[row.feedback_id] if i in known]
        # The last turn of a session was told all that was said before; else there is one prompt.
        asked = found[-1] if found else None
        turns = json.loads(asked.messages) if asked else []
        # As for the filter: of a session the ledger notes the last turn.
        about = known.get(row.completion_id)
        items.append(
            FeedbackEntry(
                feedback=feedback_of(row, policy),
                status=FeedbackStatus(row.status),
                messages=tuple(ChatMessage(role=r, content=c) for r, c in turns),
                prompt_text=asked.prompt_text if asked else "",
                completions=tuple(
                    JudgedCompletion(
                        completion_id=rollout.completion_id,
                        text=rollout.completion_text,
                        policy_version=rollout.policy_version,
                    )
                    for rollout in found
                ),
                tags=json.loads(about.tags) if about else {},
                used_by_versions=tuple(sorted(used.get(row.feedback_id, ()))),
            )
        )
    return items


def feedback_of(row: Any, policy: str) -> Feedback:
    """Return the feedback of a row."""
    judgement = json.loads(row.payload)
    lists = {name: tuple(value) for name, value in judgement.items() if isinstance(value, list)}
    kind = FeedbackKind(row.kind)
    return Feedback(
        feedback_id=row.feedback_id,
        policy=policy,
        tenant=row.tenant,
        user_hash=row.user_hash,
        # Of a session the ledger notes the last turn there.
        completion_id="" if row.session_id else row.completion_id,
        session_id=row.session_id,
        judgement=type_of_kind[kind](**judgement | lists),
        accepted_time=moment(row.accepted_time),
        metadata=json.loads(row.metadata),
    )


def versions_by_feedback(connection: Connection, rows: Sequence[Any]) -> dict[str, set[int]]:
    """Return the policy versions that learned from each feedback, or from a pair it is half of."""
    same = and_(samples.c.sample_id == uses.c.sample_id, samples.c.objective == uses.c.objective)
    learned = (
        select(
            samples.c.feedback_id,
            samples.c.user_hash,
            samples.c.completion_id,
            samples.c.rejected_id,
            uses.c.policy_version,
        )
        .join(uses, same)
        .where(uses.c.model == ModelRole.POLICY, uses.c.policy_version.is_not(None))
    )
    found: dict[str, set[int]] = {}
    by_id = learned.where(samples.c.feedback_id.in_([row.feedback_id for row in rows]))
    for use in connection.execute(by_id):
        found.setdefault(use.feedback_id, set()).add(use.policy_version)
    thumbs = {
        (row.user_hash, row.completion_id): row.feedback_id
        for row in rows
        if row.kind == "thumb" and not row.session_id
    }
    ids = [completion_id for _, completion_id in thumbs]
    pairs = learned.where(
        samples.c.kind == "siblings",
        or_(samples.c.completion_id.in_(ids), samples.c.rejected_id.in_(ids)),
    )
    for use in connection.execute(pairs):
        for completion_id in (use.completion_id, use.rejected_id):
            feedback_id = thumbs.get((use.user_hash, completion_id))
            if feedback_id is not None:
                found.setdefault(feedback_id, set()).add(use.policy_version)
    return found
