"""Which verdicts and which pairs of siblings count: a function of what is recorded and used.

Rules, for the verdicts of one user on one topic (a thumb, a rating or an edit of one completion,
which of two completions is better, the order of several), in the order they were accepted:

* A used verdict stays used.
* The last verdict counts, unless the newest used one says the same: saying it again changes
  nothing.
* A verdict on a completion itself comes after all on its session, and after what its user wrote
  next, whenever it was given: it says more.
* Every other unused verdict is superseded.
* A retracted verdict counts as never given; an expired one is not learned from but still counts.
* `current` marks the last verdict and the used ones that say the same: they may be replayed.

Two completions of one request with opposite thumbs of one user also make a pair, as long as both
thumbs are the user's last word on them. All such pairs of one user and request weigh 1 together:
what used ones have left of it is shared by the others, and where nothing is left those are
superseded.

Since the rules read the recorded state and not the order in which it came, any order and any
repetition of events leads to the same samples.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select, or_, select, update

from tuneloop.learner.ledger.events.sample_rules import (
    OF_FOLLOW_UP,
    OF_SESSION,
    Answer,
    opposites,
)
from tuneloop.learner.ledger.rows import Row, answer_tokens, insert_new
from tuneloop.learner.ledger.schema import rollouts, samples
from tuneloop.learner.samples import Objective, SampleState

COUNTED = (SampleState.OPEN, SampleState.USED, SampleState.SUPERSEDED, SampleState.EXPIRED)
"""States that take part; refused, retracted and stale samples do not."""
ROUNDING = 1e-9
"""Weights that sum to 1 may miss it by less than this."""


def settle_votes(connection: Connection, objective: str, topic: str, user_hash: str) -> None:
    """Apply the rules to the verdicts of one user on one topic."""
    query = (
        select(samples.c.sample_id, samples.c.state, samples.c.verdict, samples.c.current)
        .add_columns(or_(OF_SESSION, OF_FOLLOW_UP).label("implied"))
        .where(
            samples.c.topic == topic,
            samples.c.objective == objective,
            samples.c.user_hash == user_hash,
            samples.c.state.in_(COUNTED),
        )
        .order_by(samples.c.accepted_time, samples.c.sample_id)
    )
    rows = [row._asdict() for row in connection.execute(query)]
    votes = sorted(rows, key=lambda row: not row["implied"])
    for vote, state in zip(votes, _states(votes), strict=True):
        current = vote["verdict"] == votes[-1]["verdict"] and state in (
            SampleState.OPEN,
            SampleState.USED,
        )
        _set(connection, vote, objective, state=state, current=current)


def _states(votes: Sequence[Row]) -> list[str]:
    """Return the state each vote should have; `votes` are in the order they count in."""
    settled = (SampleState.USED, SampleState.EXPIRED)
    states = [
        vote["state"] if vote["state"] in settled else SampleState.SUPERSEDED for vote in votes
    ]
    said = [vote["verdict"] for vote in votes if vote["state"] == SampleState.USED]
    if states and states[-1] not in settled and said[-1:] != [votes[-1]["verdict"]]:
        states[-1] = SampleState.OPEN
    return states


def _set(connection: Connection, found: Row, objective: str, **values: Any) -> None:
    if all(found[name] == value for name, value in values.items()):
        return
    connection.execute(
        update(samples)
        .where(samples.c.sample_id == found["sample_id"], samples.c.objective == objective)
        .values(values)
    )


def settle_siblings(connection: Connection, group_id: str, now: float) -> None:
    """Make the pairs that opposite thumbs on one request's completions imply; supersede others."""
    tokens = (rollouts.c.prompt_tokens, rollouts.c.completion_tokens, rollouts.c.reasoning_tokens)
    siblings = {
        row.completion_id: Answer(
            prompt_tokens=row.prompt_tokens,
            answer_tokens=answer_tokens(row.completion_tokens, row.reasoning_tokens),
        )
        for row in connection.execute(
            select(rollouts.c.completion_id, *tokens).where(rollouts.c.group_id == group_id)
        )
    }
    if len(siblings) < 2:
        return
    known = [row._asdict() for row in connection.execute(_known_pairs(list(siblings)))]
    wanted = _weighed(opposites(connection, siblings, now), known)
    for row in known:
        pair = wanted.get(row["sample_id"])
        if row["state"] == SampleState.USED:
            _set(connection, row, Objective.DPO, current=pair is not None)
        elif pair is None:
            _set(connection, row, Objective.DPO, state=SampleState.SUPERSEDED, current=False)
        else:
            # The pair is as old as the later of its two thumbs, in whichever order they came.
            columns = ("state", "weight", "accepted_time")
            values = {name: pair[name] for name in columns}
            _set(connection, row, Objective.DPO, current=True, **values)
    insert_new(connection, samples, list(wanted.values()), ("sample_id", "objective"))


def _weighed(pairs: Mapping[str, Row], known: Sequence[Row]) -> dict[str, Row]:
    """Return the pairs with weights that are 1 for each user together, used ones included."""
    used = {
        row["sample_id"]: row
        for row in known
        if row["state"] == SampleState.USED and row["sample_id"] in pairs
    }
    spent: defaultdict[str, float] = defaultdict(float)
    for row in used.values():
        spent[row["user_hash"]] += row["weight"]
    unused = Counter(pair["user_hash"] for i, pair in pairs.items() if i not in used)
    weighed: dict[str, Row] = {}
    for sample_id, pair in pairs.items():
        user = pair["user_hash"]
        if sample_id in used:
            weighed[sample_id] = pair
        elif spent[user] < 1 - ROUNDING:
            weighed[sample_id] = pair | {"weight": (1 - spent[user]) / unused[user]}
    return weighed


def _known_pairs(completion_ids: list[str]) -> Select[Any]:
    columns = ("sample_id", "state", "current", "accepted_time", "weight", "user_hash")
    return select(*(samples.c[name] for name in columns)).where(
        samples.c.objective == Objective.DPO,
        samples.c.kind == "siblings",
        samples.c.completion_id.in_(completion_ids),
        samples.c.state.in_(COUNTED),
    )
