"""Record events: each once, in one transaction with the samples it makes."""

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, exists, not_, select, update

from tuneloop.feedback import Feedback
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events.follow_up_rules import note_follow_ups
from tuneloop.learner.ledger.events.lifecycle import (
    forgotten_sessions,
    forgotten_times,
    retracted,
)
from tuneloop.learner.ledger.events.sample_rules import (
    STANDARD,
    SampleRules,
    ranked_completions,
    samples_of,
    scored_sample,
)
from tuneloop.learner.ledger.events.session_rules import settle_sessions
from tuneloop.learner.ledger.events.verdict_rules import settle_siblings, settle_votes
from tuneloop.learner.ledger.rows import Row, feedback_row, insert_new, rollout_row, score_row
from tuneloop.learner.ledger.schema import (
    feedback,
    rankings,
    rollouts,
    samples,
    scores,
    versions,
)
from tuneloop.learner.samples import Objective, SampleState
from tuneloop.policies import Activation
from tuneloop.rollouts import Rollout, ScoredRollout


def record_rollouts(
    database: Database,
    events: Sequence[Rollout],
    now: float,
    rules: SampleRules = STANDARD,
) -> int:
    """Record rollouts; return how many were new. `now` is the time of recording.

    Rollouts that were on their way when their user was forgotten are dropped; so is feedback. Where
    their session was judged already, its samples are made by `rules`. What
    users wrote after answers is noted for a judge, where `rules` say so.
    """
    with database.write() as connection:
        rows = [rollout_row(rollout) for rollout in events]
        rows = _not_forgotten(connection, rows, "finished_time")
        new = insert_new(connection, rollouts, rows, ("completion_id",))
        for group_id in sorted({row["group_id"] for row in new}):
            settle_siblings(connection, group_id, now)
        settle_sessions(connection, _sessions(new), now, rules)
        if rules.follow_ups_noted:
            note_follow_ups(connection, new)
    return len(new)


def record_feedback(
    database: Database,
    events: Sequence[tuple[Feedback, int]],
    now: float,
    rules: SampleRules = STANDARD,
) -> list[Feedback]:
    """Record feedback, given with its sequence in the stream; return what was new.

    It makes its samples at once: they are not ready until their rollouts are recorded. Samples of
    feedback that was retracted before it came are retracted.
    """
    with database.write() as connection:
        rows = [feedback_row(event, sequence) for event, sequence in events]
        rows = _not_forgotten(connection, rows, "accepted_time")
        gone = retracted(connection, [row["feedback_id"] for row in rows])
        for row in rows:
            row["status"] = "retracted" if row["feedback_id"] in gone else "accepted"
        new = insert_new(connection, feedback, rows, ("feedback_id",))
        ranked = [completion for row in new for completion in ranked_completions(row)]
        insert_new(connection, rankings, ranked, ("feedback_id", "position"))
        made = [
            sample for row in new if not row["session_id"] for sample in samples_of(row, now, rules)
        ]
        for sample in made:
            counts = sample["feedback_id"] not in gone
            sample |= {
                "state": SampleState.OPEN if counts else SampleState.RETRACTED,
                "current": counts,
            }
        insert_new(connection, samples, made, ("sample_id", "objective"))
        for spoken in sorted({(s["objective"], s["topic"], s["user_hash"]) for s in made}):
            settle_votes(connection, *spoken)
        thumbs = {row["completion_id"] for row in new if row["kind"] == "thumb"}
        for group_id in _groups(connection, thumbs):
            settle_siblings(connection, group_id, now)
        settle_sessions(connection, _sessions(new), now, rules)
    fresh = {row["feedback_id"] for row in new}
    first = {event.feedback_id: event for event, _ in reversed(events)}
    return [event for event in reversed(first.values()) if event.feedback_id in fresh]


def recorded_feedback(database: Database, feedback_ids: Sequence[str]) -> set[str]:
    """Return which of these are in the ledger, in any state."""
    query = select(feedback.c.feedback_id).where(feedback.c.feedback_id.in_(feedback_ids))
    with database.read() as connection:
        return set(connection.execute(query).scalars())


def record_imports(
    database: Database, texts: Sequence[Rollout], judgements: Sequence[Feedback], now: float
) -> int:
    """Record texts that no policy sampled, and their judgements; return how many of those are new.

    An imported demonstration does not edit another answer, so it is only used for SFT.
    """
    with database.write() as connection:
        rows = [rollout_row(text) for text in texts]
        insert_new(connection, rollouts, rows, ("completion_id",))
        given = [feedback_row(event, 0) for event in judgements]
        new = insert_new(connection, feedback, given, ("feedback_id",))
        made = [
            sample
            for row in new
            for sample in samples_of(row, now)
            if row["kind"] != "demonstration" or sample["objective"] == Objective.SFT
        ]
        insert_new(connection, samples, made, ("sample_id", "objective"))
    return len(new)


def record_scores(
    database: Database,
    events: Sequence[ScoredRollout],
    now: float,
    rules: SampleRules = STANDARD,
) -> int:
    """Record scores; return how many were new.

    Those that are rewards by `rules` make samples: none where a metric is the reward.
    """
    with database.write() as connection:
        rows = [score_row(event) for event in events]
        key = ("completion_id", "reward_model_version")
        new = insert_new(connection, scores, rows, key)
        made = [
            scored_sample(row, rules.scored_objective, now)
            for row in new
            if row["reward"] is not None
            and (row["informative"] or rules.all_scores_count)
            and not rules.reward_metric
        ]
        ids = {sample["sample_id"] for sample in made}
        known = select(samples.c.sample_id).where(
            samples.c.sample_id.in_(ids), samples.c.kind == "score"
        )
        # Perhaps under the other objective: a rollout is learned from once.
        known_ids = set(connection.execute(known).scalars())
        fresh = [sample for sample in made if sample["sample_id"] not in known_ids]
        insert_new(connection, samples, fresh, ("sample_id", "objective"))
    return len(new)


def adopt_rewards(database: Database, objective: str) -> int:
    """Move open samples of scores and metrics from another objective to this; return how many."""
    there = samples.alias()
    same = (there.c.sample_id == samples.c.sample_id, there.c.objective == objective)
    with database.write() as connection:
        return connection.execute(
            update(samples)
            .where(
                samples.c.kind.in_(("score", "metric")),
                samples.c.state == SampleState.OPEN,
                samples.c.objective != objective,
                not_(exists().where(*same)),
            )
            .values(objective=objective)
        ).rowcount


def record_activation(database: Database, model: str, activation: Activation) -> bool:
    """Record when a version first served; return False if that or the version is not new."""
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


def _not_forgotten(connection: Connection, rows: Sequence[Row], time: str) -> list[Row]:
    """Return the rows without those from before their user or their session was forgotten."""
    never = float("-inf")
    users = forgotten_times(connection, {row["user_hash"] for row in rows})
    sessions = forgotten_sessions(connection, _sessions(rows))
    return [
        row
        for row in rows
        if row[time] > users.get(row["user_hash"], never)
        and row[time] > sessions.get((row["tenant"], row["session_id"]), never)
    ]


def _sessions(rows: Sequence[Row]) -> set[tuple[str, str]]:
    """Return the tenant and the session of the rows that have one."""
    return {(row["tenant"], row["session_id"]) for row in rows if row["session_id"]}


def _groups(connection: Connection, completion_ids: Iterable[str]) -> list[str]:
    query = select(rollouts.c.group_id).where(rollouts.c.completion_id.in_(list(completion_ids)))
    return sorted(set(connection.execute(query).scalars()))
