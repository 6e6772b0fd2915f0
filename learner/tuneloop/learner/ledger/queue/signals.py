"""What users did with answers: to find out what that predicts, and to learn from it.

A soft label is a sample of `signal_rules` whose user has not judged the answer in words or by a
thumb. It waits until its user has been silent for a while: they may do more, or still judge.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence

from sqlalchemy import ColumnElement, Connection, exists, func, not_, or_, select

from tuneloop.learner.guards.signals import Behavior, Calibration
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events.signal_rules import OF_SIGNALS
from tuneloop.learner.ledger.queue.build_samples import prompt_of
from tuneloop.learner.ledger.queue.ready import COLUMNS, ready_samples
from tuneloop.learner.ledger.schema import feedback, rollouts, samples, signals
from tuneloop.learner.samples import Objective, SampleState, SignalledText
from tuneloop.rollouts import RolloutSource

WINDOW = 16_384
"""The latest signals, thumbs and answers that are looked at, each."""
ROWS_AT_ONCE = 500
Key = tuple[str, str]
"""A completion and a user."""

judgement = samples.alias("judgement")
JUDGED = exists().where(
    judgement.c.objective == Objective.REWARD_MODEL,
    judgement.c.user_hash == samples.c.user_hash,
    judgement.c.state.not_in((SampleState.RETRACTED, SampleState.REFUSED)),
    or_(
        judgement.c.completion_id == samples.c.completion_id,
        judgement.c.rejected_id == samples.c.completion_id,
    ),
)
"""Whether the user of a sample has judged its answer."""


def behaviors(database: Database) -> list[Behavior]:
    """Return what users who send signals did with answers, and their thumbs, since the first one.

    Answers to them that they neither judged nor did anything with are among them.
    """
    latest = (
        select(signals.c.user_hash, signals.c.accepted_time)
        .order_by(signals.c.accepted_time.desc())
        .limit(WINDOW)
        .subquery()
    )
    users = select(latest.c.user_hash)
    with database.read() as connection:
        since = connection.execute(select(func.min(latest.c.accepted_time))).scalar_one()
        if since is None:
            return []
        done = _signals(connection, signals.c.accepted_time >= since)
        thumbs = (
            select(feedback.c.completion_id, feedback.c.user_hash, feedback.c.up)
            .where(
                feedback.c.kind == "thumb",
                feedback.c.session_id == "",
                feedback.c.status != "retracted",
                feedback.c.accepted_time >= since,
                feedback.c.user_hash.in_(users),
            )
            .order_by(feedback.c.accepted_time.desc(), feedback.c.feedback_id.desc())
            .limit(WINDOW)
        )
        # Reversed: of several thumbs the last counts.
        said = {
            (row.completion_id, row.user_hash): bool(row.up)
            for row in reversed(connection.execute(thumbs).all())
        }
        answers = (
            select(rollouts.c.completion_id, rollouts.c.user_hash)
            .where(
                rollouts.c.source == RolloutSource.USER.value,
                rollouts.c.finished_time >= since,
                rollouts.c.user_hash.in_(users),
            )
            .order_by(rollouts.c.finished_time.desc())
            .limit(WINDOW)
        )
        silent = {(row.completion_id, row.user_hash) for row in connection.execute(answers)}
    return [
        Behavior(completion_id=key[0], user=key[1], signals=done.get(key, {}), up=said.get(key))
        for key in sorted(done.keys() | said.keys() | silent)
    ]


def soft_labels(
    database: Database,
    calibration: Calibration,
    limit: int,
    *,
    silent_since: float,
    not_before: float = 0.0,
    exclude: Collection[str] = (),
) -> list[SignalledText]:
    """Return up to `limit` samples of users' signals, the newest first, without `exclude`.

    Only of signals that nothing followed since `silent_since` and that came after `not_before`.
    Each weighs what its signals tell.
    """
    if not calibration.kinds:
        return []
    query = (
        ready_samples(*COLUMNS)
        .where(
            OF_SIGNALS,
            samples.c.state == SampleState.OPEN,
            samples.c.recorded_time <= silent_since,
            samples.c.accepted_time >= not_before,
            samples.c.sample_id.not_in(list(exclude)),
            _has_signal(calibration.kinds),
            not_(JUDGED),
        )
        .order_by(samples.c.accepted_time.desc(), samples.c.sample_id)
        .limit(limit)
    )
    with database.read() as connection:
        rows = connection.execute(query).all()
        done = _signals_on(connection, [row.completion_id for row in rows])
    found = []
    for row in rows:
        chance = calibration.chance(done[row.completion_id, row.user_hash])
        if chance is not None:
            found.append(
                SignalledText(
                    sample_id=row.sample_id,
                    prompt=prompt_of(row),
                    completion=row.chosen_completion_text,
                    chance=chance,
                    weight=calibration.says(chance),
                )
            )
    return found


def _has_signal(kinds: Sequence[str]) -> ColumnElement[bool]:
    return exists().where(
        signals.c.completion_id == samples.c.completion_id,
        signals.c.user_hash == samples.c.user_hash,
        signals.c.kind.in_(kinds),
    )


def _signals_on(
    connection: Connection, completion_ids: Sequence[str]
) -> dict[Key, dict[str, float]]:
    found: dict[Key, dict[str, float]] = {}
    for start in range(0, len(completion_ids), ROWS_AT_ONCE):
        chosen = completion_ids[start : start + ROWS_AT_ONCE]
        found |= _signals(connection, signals.c.completion_id.in_(chosen))
    return found


def _signals(connection: Connection, condition: ColumnElement[bool]) -> dict[Key, dict[str, float]]:
    """Return the signals by completion and user; the last of several edits counts."""
    query = (
        select(signals.c.completion_id, signals.c.user_hash, signals.c.kind, signals.c.distance)
        .where(condition)
        .order_by(signals.c.accepted_time, signals.c.signal_id)
    )
    found: defaultdict[Key, dict[str, float]] = defaultdict(dict)
    for row in connection.execute(query):
        value = 1.0 if row.distance is None else row.distance
        found[row.completion_id, row.user_hash][row.kind] = value
    return dict(found)
