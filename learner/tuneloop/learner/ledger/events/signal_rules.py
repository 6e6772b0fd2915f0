"""Record signals, and the sample that those of one user on one answer make together.

A sample says that there is something to learn from. What it says of the answer depends on what
signals have been found to predict by then: see `queue.signals`.
"""

import hashlib
from collections.abc import Sequence

from sqlalchemy import Connection, and_, delete, exists, not_, update

from tuneloop.feedback import Signal
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events.lifecycle import forgotten_times
from tuneloop.learner.ledger.rows import Row, compact, insert_new
from tuneloop.learner.ledger.schema import samples, signals
from tuneloop.learner.samples import Objective, SampleState

OF_SIGNALS = samples.c.objective == Objective.SIGNALS


def record_signals(
    database: Database, events: Sequence[tuple[Signal, int]], now: float, *, learned: bool
) -> list[Signal]:
    """Record signals, given with their sequence in the stream; return what was new.

    With `learned` they make samples. A further signal makes an unused sample young again: users do
    several things with an answer, one soon after the other.
    """
    with database.write() as connection:
        rows = [signal_row(event, sequence) for event, sequence in events]
        gone = forgotten_times(connection, {row["user_hash"] for row in rows})
        never = float("-inf")
        rows = [r for r in rows if r["accepted_time"] > gone.get(r["user_hash"], never)]
        new = insert_new(connection, signals, rows, ("signal_id", "user_hash"))
        if learned:
            make_samples(connection, new, now)
    fresh = {(row["signal_id"], row["user_hash"]) for row in new}
    first = {(event.signal_id, event.user_hash): event for event, _ in reversed(events)}
    return [event for key, event in reversed(first.items()) if key in fresh]


def signal_row(signal: Signal, sequence: int) -> Row:
    """Return a row of `signals`."""
    return {
        "signal_id": signal.signal_id,
        "user_hash": signal.user_hash,
        "tenant": signal.tenant,
        "completion_id": signal.completion_id,
        "kind": signal.kind.value,
        "distance": signal.distance,
        "metadata": compact(dict(signal.metadata)),
        "api_key_id": signal.api_key_id,
        "accepted_time": signal.accepted_time.timestamp(),
        "sequence": sequence,
    }


def make_samples(connection: Connection, rows: Sequence[Row], now: float) -> None:
    """Make the samples of new rows of `signals`."""
    made = [
        {
            "sample_id": sample_id_of(row["completion_id"], row["user_hash"]),
            "objective": Objective.SIGNALS,
            "kind": "signals",
            "state": SampleState.OPEN,
            "completion_id": row["completion_id"],
            "user_hash": row["user_hash"],
            "accepted_time": row["accepted_time"],
            "recorded_time": now,
        }
        for row in rows
    ]
    insert_new(connection, samples, made, ("sample_id", "objective"))
    for row in made:
        connection.execute(
            update(samples)
            .where(
                samples.c.sample_id == row["sample_id"],
                OF_SIGNALS,
                samples.c.state == SampleState.OPEN,
            )
            .values(recorded_time=now)
        )


def sample_id_of(completion_id: str, user_hash: str) -> str:
    """Return the id of the sample of a user's signals on a completion."""
    about = hashlib.sha256(f"{user_hash}|{completion_id}".encode()).hexdigest()
    return f"signals-{about[:32]}"


def expire_signals(connection: Connection, before: float) -> None:
    """Delete the signals from before a time, and samples of them that nothing learned from."""
    connection.execute(delete(signals).where(signals.c.accepted_time < before))
    left = exists().where(
        signals.c.completion_id == samples.c.completion_id,
        signals.c.user_hash == samples.c.user_hash,
    )
    open_ones = and_(OF_SIGNALS, samples.c.state == SampleState.OPEN)
    connection.execute(
        update(samples)
        .where(open_ones, samples.c.accepted_time < before, not_(left))
        .values(state=SampleState.EXPIRED, current=False)
    )
