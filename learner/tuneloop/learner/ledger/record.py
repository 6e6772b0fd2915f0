"""Events into the ledger: each in one transaction with the samples it makes, each only once."""

import json
from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, select, update

from tuneloop.feedback import Feedback
from tuneloop.learner.ledger.database import Database, Row, insert_new
from tuneloop.learner.ledger.rows import feedback_row, rollout_row, score_row
from tuneloop.learner.ledger.schema import feedback, rollouts, samples, scores, versions
from tuneloop.learner.ledger.votes import THUMB_OBJECTIVES, settle_siblings, settle_votes
from tuneloop.policies import Activation
from tuneloop.rollouts import Rollout, ScoredRollout

PAIR_OBJECTIVES = ("dpo", "reward_model")


def record_rollouts(database: Database, events: Sequence[Rollout], now: float) -> int:
    """Keep rollouts; how many were new. `now` is the time of recording."""
    with database.write() as connection:
        rows = [rollout_row(rollout) for rollout in events]
        new = insert_new(connection, rollouts, rows, ("completion_id",))
        for group_id in sorted({row["group_id"] for row in new}):
            settle_siblings(connection, group_id, now)
    return len(new)


def record_feedback(
    database: Database, events: Sequence[tuple[Feedback, int]], now: float
) -> list[Feedback]:
    """Keep feedback, given with its sequence in the stream; the ones that were new.

    Thumbs and comparisons make samples at once; those wait for their rollouts by not being ready.
    """
    with database.write() as connection:
        rows = [feedback_row(event, sequence) for event, sequence in events]
        new = insert_new(connection, feedback, rows, ("feedback_id",))
        made = [sample for row in new for sample in _samples_of(row, now)]
        insert_new(connection, samples, made, ("sample_id", "objective"))
        thumbs = [row for row in new if row["kind"] == "thumb"]
        for completion_id, user in sorted({(r["completion_id"], r["user_hash"]) for r in thumbs}):
            settle_votes(connection, completion_id, user)
        for group_id in _groups(connection, {row["completion_id"] for row in thumbs}):
            settle_siblings(connection, group_id, now)
    fresh = {row["feedback_id"] for row in new}
    first = {event.feedback_id: event for event, _ in reversed(events)}
    return [event for event in reversed(first.values()) if event.feedback_id in fresh]


def record_scores(
    database: Database, events: Sequence[ScoredRollout], now: float, *, all_count: bool = False
) -> int:
    """Keep scores; how many were new.

    An informative score makes a PPO sample; with `all_count` every score with a reward does.
    """
    with database.write() as connection:
        rows = [score_row(event) for event in events]
        key = ("completion_id", "reward_model_version")
        new = insert_new(connection, scores, rows, key)
        made = [
            {
                "sample_id": row["completion_id"],
                "objective": "ppo",
                "state": "open",
                "completion_id": row["completion_id"],
                "user_hash": "",
                "accepted_time": row["scored_time"],
                "recorded_time": now,
            }
            for row in new
            if row["reward"] is not None and (row["informative"] or all_count)
        ]
        insert_new(connection, samples, made, ("sample_id", "objective"))
    return len(new)


def record_activation(database: Database, model: str, activation: Activation) -> bool:
    """Keep when a version first served; False when that was known, or the version is not."""
    with database.write() as connection:
        first = connection.execute(
            update(versions)
            .where(
                versions.c.model == model,
                versions.c.version == activation.policy_version,
                versions.c.activated_time.is_(None),
            )
            .values(activated_time=activation.activated_time.timestamp())
        )
        return first.rowcount == 1


def _groups(connection: Connection, completion_ids: Iterable[str]) -> list[str]:
    query = select(rollouts.c.group_id).where(rollouts.c.completion_id.in_(list(completion_ids)))
    return sorted(set(connection.execute(query).scalars()))


def _samples_of(row: Row, now: float) -> list[Row]:
    """The sample rows a feedback row makes; none for the kinds no objective consumes yet."""
    common = {
        "state": "open",
        "note": None,
        "user_hash": row["user_hash"],
        "feedback_id": row["feedback_id"],
        "accepted_time": row["accepted_time"],
        "recorded_time": now,
    }
    if row["kind"] == "thumb":
        thumb = {"completion_id": row["completion_id"], "rejected_id": None, "up": row["up"]}
        return [
            common | thumb | {"sample_id": row["feedback_id"], "objective": objective}
            for objective in THUMB_OBJECTIVES
        ]
    if row["kind"] == "comparison":
        judgement = json.loads(row["payload"])
        return [
            common
            | {
                "sample_id": row["feedback_id"]
                if number == 0
                else f"{row['feedback_id']}.{number}",
                "objective": objective,
                "completion_id": judgement["chosen"],
                "rejected_id": rejected,
                "up": None,
            }
            for number, rejected in enumerate(judgement["rejected"])
            for objective in PAIR_OBJECTIVES
        ]
    return []
