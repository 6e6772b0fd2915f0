"""How a judgement of a whole session becomes samples of its turns.

A turn is the answer to one prompt: the choices of a request, and answers that were asked for again.
Of several that one counts which the next turn's conversation continues with; where that cannot be
told, all of them share the turn's credit. The turns of a judgement are those that were finished
before it was given, in the order they were, asked for by users and allowed to be learned from.

One judgement weighs one: `CreditRule` says which part of it each turn gets. Each turn's sample is
what the same judgement of that turn alone would make, with the credit as its weight, so the rules
of votes hold (see `verdict_rules`).

Rollouts may be recorded after the feedback. So its samples are made again whenever a rollout of
the session is recorded, until one of them is used; until there is a turn, a sample without a
completion waits for it, and expires as others do. What is made follows from what is recorded and
used, not from the order in which it came.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection, delete, exists, or_, select, update

from tuneloop.feedback import FeedbackStatus
from tuneloop.learner.ledger.events.sample_rules import CreditRule, SampleRules, samples_of
from tuneloop.learner.ledger.events.verdict_rules import settle_votes
from tuneloop.learner.ledger.rows import Row, compact, insert_new
from tuneloop.learner.ledger.schema import (
    feedback,
    held_out,
    rollouts,
    samples,
    undone_uses,
    uses,
)
from tuneloop.learner.samples import SampleState
from tuneloop.rollouts import RolloutSource

LATE_SECONDS = 1.0
"""Generation hands an answer over in the background: one that was judged at once may be stored this
much after its judgement."""
Session = tuple[str, str]
"""A tenant and the id of one of its sessions."""
Turn = tuple[str, ...]
"""The completions that share the credit of one turn."""


def settle_sessions(
    connection: Connection,
    sessions: Iterable[Session],
    now: float,
    rules: SampleRules,
) -> None:
    """Make the samples of all feedback on these sessions from the turns that are recorded."""
    for tenant, session_id in sorted(set(sessions)):
        judged = connection.execute(
            select(feedback)
            .where(
                feedback.c.session_id == session_id,
                feedback.c.tenant == tenant,
                feedback.c.status != FeedbackStatus.EXPIRED.value,
            )
            .order_by(feedback.c.accepted_time, feedback.c.feedback_id)
        ).all()
        recorded = _recorded(connection, tenant, session_id) if judged else []
        for row in judged:
            before = [r for r in recorded if r.finished_time <= row.accepted_time + LATE_SECONDS]
            turns = _turns(connection, before)
            _settle(connection, row._asdict(), turns, now, rules)


def _recorded(connection: Connection, tenant: str, session_id: str) -> Sequence[Any]:
    """Return the rollouts of a session that may be learned from, in the order they finished."""
    query = select(
        rollouts.c.finished_time, rollouts.c.completion_id, rollouts.c.prompt_sha256
    ).where(
        rollouts.c.session_id == session_id,
        rollouts.c.tenant == tenant,
        rollouts.c.source == RolloutSource.USER.value,
        rollouts.c.completion_tokens != b"",
        rollouts.c.prompt_sha256.not_in(select(held_out.c.prompt_sha256)),
    )
    # Sorted here: the order of texts is one that each database has of its own.
    return sorted(connection.execute(query), key=lambda row: (row.finished_time, row.completion_id))


def _turns(connection: Connection, recorded: Sequence[Any]) -> list[Turn]:
    """Return the turns, oldest first, each without the choices that it did not go on with."""
    choices: dict[str, list[str]] = {}
    for row in recorded:
        choices.setdefault(row.prompt_sha256, []).append(row.completion_id)
    turns = [*choices.values(), []]
    return [
        tuple(turn if len(turn) == 1 or not after else _continued(connection, turn, after[0]))
        for turn, after in pairwise(turns)
    ]


def _continued(connection: Connection, turn: Sequence[str], after: str) -> Sequence[str]:
    """Return the choices of a turn that the prompt of the one after goes on with; all if none."""
    texts = select(rollouts.c.completion_id, rollouts.c.messages, rollouts.c.completion_text).where(
        rollouts.c.completion_id.in_([*turn, after])
    )
    known = {row.completion_id: row for row in connection.execute(texts)}
    asked, conversation = (json.loads(known[c].messages) for c in (turn[0], after))
    further = conversation[len(asked) :]
    if not asked or not further or conversation[: len(asked)] != asked:
        return turn
    role, content = further[0]
    said = [c for c in turn if known[c].completion_text.strip() == content.strip()]
    return said if said and role == "assistant" else turn


def _credit(turns: Sequence[Turn], rule: CreditRule) -> dict[str, float]:
    """Return the weight of each completion that has any."""
    weights = zip(turns, rule.weights(len(turns)), strict=True)
    return {c: weight / len(turn) for turn, weight in weights for c in turn if weight > 0}


def _settle(
    connection: Connection,
    row: Row,
    turns: Sequence[Turn],
    now: float,
    rules: SampleRules,
) -> None:
    """Make the samples of one row of `feedback`, or make them again if none was used."""
    own = samples.c.feedback_id == row["feedback_id"]
    if _is_used(connection, own):
        return
    if turns:
        connection.execute(
            update(feedback)
            .where(feedback.c.feedback_id == row["feedback_id"])
            .values(
                completion_id=turns[-1][-1],
                completion_ids=compact([c for turn in turns for c in turn]),
            )
        )
        connection.execute(delete(samples).where(own, samples.c.completion_id == ""))
    accepted = row["status"] == FeedbackStatus.ACCEPTED.value
    state = SampleState.OPEN if accepted else SampleState.RETRACTED
    wanted = {
        (sample["sample_id"], sample["objective"]): sample | {"state": state, "current": accepted}
        for sample in _samples(row, _credit(turns, rules.credit), now, rules)
    }
    known = connection.execute(
        select(samples.c.sample_id, samples.c.objective, samples.c.topic, samples.c.weight).where(
            own
        )
    ).all()
    topics = {(key[1], sample["topic"]) for key, sample in wanted.items()}
    for found in known:
        topics.add((found.objective, found.topic))
        _change(connection, found, wanted.get((found.sample_id, found.objective)))
    insert_new(connection, samples, list(wanted.values()), ("sample_id", "objective"))
    for objective, topic in sorted(topics):
        if topic:
            settle_votes(connection, objective, topic, row["user_hash"])


def _samples(row: Row, credit: Mapping[str, float], now: float, rules: SampleRules) -> list[Row]:
    """Return the sample rows of a judgement of a session: of each turn, or one set that waits."""

    def of(completion_id: str) -> list[Row]:
        about = row | {"completion_id": completion_id}
        return samples_of(about, now, rules)

    if not credit:
        return [sample | {"topic": ""} for sample in of("")]
    return [
        sample | {"sample_id": f"{row['feedback_id']}.{completion_id}", "weight": weight}
        for completion_id, weight in credit.items()
        for sample in of(completion_id)
    ]


def _is_used(connection: Connection, own: Any) -> bool:
    """Return whether a step used one of the samples, even if that was undone."""
    by_step = (
        exists().where(
            table.c.sample_id == samples.c.sample_id, table.c.objective == samples.c.objective
        )
        for table in (uses, undone_uses)
    )
    query = select(samples.c.sample_id).where(own, or_(*by_step)).limit(1)
    return connection.execute(query).first() is not None


def _change(connection: Connection, found: Any, wanted: Row | None) -> None:
    """Give a sample the weight it should have; one that has none any more is about nothing.

    It stays on record, as a step that is running may have taken it.
    """
    same = (samples.c.sample_id == found.sample_id) & (samples.c.objective == found.objective)
    unused = samples.c.state.in_((SampleState.OPEN, SampleState.SUPERSEDED))
    if wanted is None:
        values: Row = {"topic": ""}
        rest = {"state": SampleState.SUPERSEDED, "current": False}
    else:
        values = {"topic": wanted["topic"], "weight": wanted["weight"]}
        # What is about nothing counts for nothing; the rules of votes decide on the rest.
        rest = {"state": SampleState.OPEN, "current": True} if found.topic == "" else {}
    connection.execute(update(samples).where(same).values(values))
    if rest:
        connection.execute(update(samples).where(same, unused).values(rest))
