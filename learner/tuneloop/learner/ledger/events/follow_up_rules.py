"""Follow-ups: the message that a user wrote after an answer, and what a judge read in it.

Its text is in the prompt of the next answer. One rollout follows another if both are of the same
session and the same user, and its conversation is that of the other, the answer as it was given,
and one message more of the user's. Of several answers or messages that fit, the first that is
recorded counts; a follow-up is noted whichever of the two rollouts comes first.

A judge labels each follow-up once. The label is a signal (see `signal_rules`) that no client can
send. Where comments train, a follow-up that surely corrects or complains is also a hint, as a
comment on the answer would be. A comment says more, so it wins, whichever came first (see
`verdict_rules`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, or_, select, update

from tuneloop.feedback import FollowUpLabel
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events.sample_rules import digest
from tuneloop.learner.ledger.events.signal_rules import make_samples
from tuneloop.learner.ledger.events.verdict_rules import settle_votes
from tuneloop.learner.ledger.rows import Row, compact, insert_new
from tuneloop.learner.ledger.schema import follow_ups, rollouts, samples, signals
from tuneloop.learner.samples import Objective, SampleState
from tuneloop.rollouts import RolloutSource

SURE = 0.8
"""A label with this probability or more may make a hint."""
HINTS = (FollowUpLabel.CORRECTED, FollowUpLabel.COMPLAINED)
"""The labels that may."""
LATE_SECONDS = 60.0
"""An answer may be stored this much after what follows it."""
BY_JUDGE = "judge"
"""Where the key of a client stands in other signals."""
answered = rollouts.alias("answered")
following = rollouts.alias("following")


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowUp:
    """What a user asked, what was answered, and what they wrote then."""

    completion_id: str
    """Of the answer."""
    question: str
    answer: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a judge read in a follow-up."""

    label: FollowUpLabel | None
    """None: nothing, and it is not asked again."""
    probability: float = 0.0
    note: str = ""
    """Why there is no label."""


def note_follow_ups(connection: Connection, rows: Sequence[Row]) -> None:
    """Note the follow-ups that new rows of `rollouts` have, and those that they are."""
    ordered = sorted(rows, key=lambda row: (row["finished_time"], row["completion_id"]))
    for row in ordered:
        if not row["session_id"] or row["source"] != RolloutSource.USER.value:
            continue
        for answer, after in (*_before(connection, row), *_after(connection, row)):
            _note(connection, answer, after)


def _before(connection: Connection, row: Row) -> list[tuple[Any, Any]]:
    """Return the answer that a rollout follows, if it follows one, and the rollout."""
    conversation = json.loads(row["messages"])
    if not is_follow_up(conversation):
        return []
    query = _of_session(row).where(rollouts.c.messages == compact(conversation[:-2]))
    said = conversation[-2][1].strip()
    found = [r for r in connection.execute(query) if r.completion_text.strip() == said]
    after = connection.execute(_of_session(row).where(_is(row["completion_id"]))).one()
    return [(found[0], after)] if found else []


def _after(connection: Connection, row: Row) -> list[tuple[Any, Any]]:
    """Return an answer with a rollout that follows it and was recorded before it, if any."""
    asked = row["messages"][:-1] + ","
    # Not LIKE, which knows no case in SQLite and takes no long patterns.
    begins = func.substr(rollouts.c.messages, 1, len(asked)) == asked
    answer = connection.execute(_of_session(row).where(_is(row["completion_id"]))).one()
    length, said = len(json.loads(row["messages"])) + 2, row["completion_text"].strip()
    recent = rollouts.c.finished_time >= row["finished_time"] - LATE_SECONDS
    for after in connection.execute(_of_session(row).where(recent, begins)):
        conversation = json.loads(after.messages)
        fits = len(conversation) == length and is_follow_up(conversation)
        if fits and conversation[-2][1].strip() == said:
            return [(answer, after)]
    return []


def is_follow_up(conversation: Sequence[Sequence[str]]) -> bool:
    """Return whether a conversation ends in an answer and what its user wrote after it."""
    return [role for role, _ in conversation[-3:]] == ["user", "assistant", "user"]


def _is(completion_id: str) -> ColumnElement[bool]:
    return rollouts.c.completion_id == completion_id


def _of_session(row: Row) -> Any:
    """Select the rollouts of a row's session and user, oldest first."""
    return (
        select(
            rollouts.c.completion_id,
            rollouts.c.messages,
            rollouts.c.completion_text,
            rollouts.c.user_hash,
            rollouts.c.finished_time,
        )
        .where(
            rollouts.c.session_id == row["session_id"],
            rollouts.c.tenant == row["tenant"],
            rollouts.c.user_hash == row["user_hash"],
            rollouts.c.source == RolloutSource.USER.value,
        )
        .order_by(rollouts.c.finished_time, rollouts.c.completion_id)
    )


def _note(connection: Connection, answer: Any, after: Any) -> None:
    known = select(follow_ups.c.completion_id).where(follow_ups.c.next_id == after.completion_id)
    if connection.execute(known).first() is not None:
        return
    row = {
        "completion_id": answer.completion_id,
        "next_id": after.completion_id,
        "user_hash": answer.user_hash,
        "asked_time": after.finished_time,
    }
    insert_new(connection, follow_ups, [row], ("completion_id",))


def waiting(database: Database, limit: int) -> list[FollowUp]:
    """Return follow-ups that were not judged yet, the newest first."""
    with database.read() as connection:
        rows = connection.execute(
            _with_rollouts()
            .where(follow_ups.c.judged_time.is_(None))
            .order_by(follow_ups.c.asked_time.desc(), follow_ups.c.completion_id)
            .limit(limit)
        ).all()
    return [_follow_up(row) for row in rows]


def _with_rollouts() -> Any:
    """Select follow-ups with what was asked, answered and written."""
    return (
        select(
            follow_ups,
            following.c.messages,
            following.c.tenant,
        )
        .join(answered, answered.c.completion_id == follow_ups.c.completion_id)
        .join(following, following.c.completion_id == follow_ups.c.next_id)
    )


def _follow_up(row: Any) -> FollowUp:
    question, answer, text = (content for _, content in json.loads(row.messages)[-3:])
    return FollowUp(completion_id=row.completion_id, question=question, answer=answer, text=text)


def record_verdicts(
    database: Database,
    verdicts: Mapping[str, Verdict],
    now: float,
    *,
    learned: bool,
    hints: bool,
) -> int:
    """Record what a judge read in follow-ups, by completion; return how many of them were open.

    Each is judged once, and what was forgotten meanwhile stays forgotten. With `learned` labels
    make samples as other signals do; with `hints` they may make hints.
    """
    count = 0
    with database.write() as connection:
        for completion_id, verdict in sorted(verdicts.items()):
            row = connection.execute(
                _with_rollouts().where(
                    follow_ups.c.completion_id == completion_id,
                    follow_ups.c.judged_time.is_(None),
                )
            ).one_or_none()
            if row is None:
                continue
            count += 1
            connection.execute(
                update(follow_ups)
                .where(follow_ups.c.completion_id == completion_id)
                .values(
                    judged_time=now,
                    label=verdict.label,
                    probability=verdict.probability,
                    note=verdict.note,
                )
            )
            if verdict.label is None:
                continue
            new = insert_new(
                connection, signals, [_signal(row, verdict)], ("signal_id", "user_hash")
            )
            if learned:
                make_samples(connection, new, now)
            if hints and verdict.label in HINTS and verdict.probability >= SURE:
                _make_hint(connection, row, now)
    return count


def _signal(row: Any, verdict: Verdict) -> Row:
    assert verdict.label is not None
    return {
        # No client can give a signal an id with a colon.
        "signal_id": f"{BY_JUDGE}:{row.completion_id}",
        "user_hash": row.user_hash,
        "tenant": row.tenant,
        "completion_id": row.completion_id,
        "kind": verdict.label.value,
        "distance": None,
        "metadata": "{}",
        "api_key_id": BY_JUDGE,
        "accepted_time": row.asked_time,
        "sequence": 0,
    }


def _make_hint(connection: Connection, row: Any, now: float) -> None:
    """Make the sample that a comment with the text of a follow-up would make."""
    topic = f"comment:{row.completion_id}"
    sample = {
        "sample_id": f"follow-up-{digest(row.completion_id)[:32]}",
        "objective": Objective.SDFT,
        "kind": "follow_up",
        "state": SampleState.OPEN,
        "completion_id": row.completion_id,
        "rejected_id": row.next_id,
        "weight": 1.0,
        "topic": topic,
        "verdict": digest(_follow_up(row).text),
        "user_hash": row.user_hash,
        "accepted_time": row.asked_time,
        "recorded_time": now,
    }
    insert_new(connection, samples, [sample], ("sample_id", "objective"))
    settle_votes(connection, Objective.SDFT, topic, row.user_hash)


def delete_follow_ups(connection: Connection, completion_ids: Any) -> None:
    """Delete those of which either rollout is among these: ids, or a query of them."""
    either = or_(
        follow_ups.c.completion_id.in_(completion_ids), follow_ups.c.next_id.in_(completion_ids)
    )
    connection.execute(delete(follow_ups).where(either))
