"""Which thumbs and which pairs of siblings count: a function of what is recorded and what is used.

Rules, for the thumbs of one user on one completion, in the order they were accepted:

* A used thumb stays used.
* The last thumb counts, unless the newest used one says the same: saying it again changes nothing.
* Every other unused thumb is superseded.

Two completions of one request with opposite thumbs of one user also make a pair, as long as both
thumbs are the user's last word on them. Since the rules read the recorded state and not the order
in which it came, any interleaving and any repetition of events ends in the same samples.
"""

import hashlib
from collections.abc import Sequence

from sqlalchemy import Connection, select, update

from tuneloop.learner.ledger.database import Row, insert_new
from tuneloop.learner.ledger.schema import feedback, rollouts, samples

THUMB_OBJECTIVES = ("kto", "reward_model")


def settle_votes(connection: Connection, completion_id: str, user_hash: str) -> None:
    """Apply the rules to the thumbs of one user on one completion."""
    for objective in THUMB_OBJECTIVES:
        query = (
            select(samples.c.sample_id, samples.c.state, samples.c.up)
            .where(
                samples.c.completion_id == completion_id,
                samples.c.rejected_id.is_(None),
                samples.c.user_hash == user_hash,
                samples.c.objective == objective,
                samples.c.state != "refused",
            )
            .order_by(samples.c.accepted_time, samples.c.sample_id)
        )
        votes = [row._asdict() for row in connection.execute(query)]
        states = {vote["sample_id"]: vote["state"] for vote in votes}
        for sample_id, state in _verdicts(votes).items():
            if states[sample_id] == state:
                continue
            connection.execute(
                update(samples)
                .where(samples.c.sample_id == sample_id, samples.c.objective == objective)
                .values(state=state)
            )


def _verdicts(votes: Sequence[Row]) -> dict[str, str]:
    """The state each unused vote should have; `votes` in the order they were accepted."""
    used = [vote for vote in votes if vote["state"] == "used"]
    states = {vote["sample_id"]: "superseded" for vote in votes if vote["state"] != "used"}
    if votes and votes[-1]["state"] != "used" and not (used and used[-1]["up"] == votes[-1]["up"]):
        states[votes[-1]["sample_id"]] = "open"
    return states


def settle_siblings(connection: Connection, group_id: str, now: float) -> None:
    """Make the pairs that opposite thumbs on completions of one request imply, and undo others."""
    siblings = {
        row.completion_id: row.prompt_tokens
        for row in connection.execute(
            select(rollouts.c.completion_id, rollouts.c.prompt_tokens).where(
                rollouts.c.group_id == group_id
            )
        )
    }
    if len(siblings) < 2:
        return
    wanted = _opposites(connection, siblings, now)
    ids = list(siblings)
    known = select(samples.c.sample_id, samples.c.state).where(
        samples.c.objective == "dpo",
        samples.c.feedback_id.is_(None),
        samples.c.completion_id.in_(ids),
    )
    for row in connection.execute(known).all():
        state = "open" if row.sample_id in wanted else "superseded"
        if row.state in ("open", "superseded") and row.state != state:
            connection.execute(
                update(samples)
                .where(samples.c.sample_id == row.sample_id, samples.c.objective == "dpo")
                .values(state=state)
            )
    insert_new(connection, samples, list(wanted.values()), ("sample_id", "objective"))


def _opposites(connection: Connection, siblings: dict[str, bytes], now: float) -> dict[str, Row]:
    votes = connection.execute(
        select(feedback)
        .where(feedback.c.kind == "thumb", feedback.c.completion_id.in_(list(siblings)))
        .order_by(feedback.c.accepted_time, feedback.c.feedback_id)
    )
    last = {(vote.user_hash, vote.completion_id): vote for vote in votes}
    pairs: dict[str, Row] = {}
    for chosen in last.values():
        for rejected in last.values():
            opposite = chosen.user_hash == rejected.user_hash and chosen.up and not rejected.up
            same_prompt = siblings[chosen.completion_id] == siblings[rejected.completion_id]
            if not (opposite and same_prompt):
                continue
            name = f"{chosen.user_hash}\0{chosen.completion_id}\0{rejected.completion_id}"
            sample_id = f"siblings-{hashlib.sha256(name.encode()).hexdigest()[:32]}"
            pairs[sample_id] = {
                "sample_id": sample_id,
                "objective": "dpo",
                "state": "open",
                "completion_id": chosen.completion_id,
                "rejected_id": rejected.completion_id,
                "user_hash": chosen.user_hash,
                "accepted_time": max(chosen.accepted_time, rejected.accepted_time),
                "recorded_time": now,
            }
    return pairs
