"""Bringing an older ledger up to the present schema, in place and in one transaction.

A step for each version, spelled out in SQL, since the tables of `schema` move on. The rules of
votes are those of today, so they are applied last, to the tables of today. A crash in the middle
leaves the ledger as it was.
"""

import hashlib
import json
from collections.abc import Callable, Mapping

from sqlalchemy import Connection, text

from tuneloop.learner.ledger.schema import SCHEMA_VERSION, metadata

ROWS_AT_ONCE = 1000


def upgrade(connection: Connection, version: int) -> None:
    """Take every step from `version` on."""
    for number in range(version, SCHEMA_VERSION):
        steps[number](connection)
    if version < 2:
        _settle(connection)
    connection.execute(
        text("UPDATE facts SET value = :version WHERE name = 'schema_version'"),
        {"version": str(SCHEMA_VERSION)},
    )


def _all_kinds_of_feedback(connection: Connection) -> None:
    """1 to 2: topics and verdicts, sources of rollouts, samples of kinds that were only kept."""
    for statement in (
        "ALTER TABLE rollouts ADD COLUMN source VARCHAR NOT NULL DEFAULT 'user'",
        "ALTER TABLE rollouts ADD COLUMN columns TEXT NOT NULL DEFAULT '{}'",
        "ALTER TABLE rollouts ADD COLUMN group_size INTEGER NOT NULL DEFAULT 1",
        "ALTER TABLE rollouts ADD COLUMN prompt_sha256 VARCHAR NOT NULL DEFAULT ''",
        "ALTER TABLE samples ADD COLUMN kind VARCHAR NOT NULL DEFAULT 'score'",
        "ALTER TABLE samples ADD COLUMN weight FLOAT NOT NULL DEFAULT 1",
        "ALTER TABLE samples ADD COLUMN topic VARCHAR NOT NULL DEFAULT ''",
        "ALTER TABLE samples ADD COLUMN verdict VARCHAR NOT NULL DEFAULT ''",
        "ALTER TABLE samples ADD COLUMN current BOOLEAN NOT NULL DEFAULT true",
        "ALTER TABLE samples ADD COLUMN reported BOOLEAN NOT NULL DEFAULT false",
        "UPDATE samples SET kind = 'thumb', topic = 'thumb:' || completion_id,"
        " verdict = CASE WHEN up THEN 'up' ELSE 'down' END WHERE up IS NOT NULL",
        "UPDATE samples SET kind = CASE WHEN feedback_id IS NULL THEN 'siblings' ELSE 'pair' END,"
        " verdict = completion_id WHERE rejected_id IS NOT NULL",
        "UPDATE samples SET topic = CASE WHEN completion_id < rejected_id"
        " THEN 'pair:' || completion_id || '|' || rejected_id"
        " ELSE 'pair:' || rejected_id || '|' || completion_id END WHERE kind = 'pair'",
        # Dead letters of these were never sent and would only be news of old.
        "UPDATE samples SET reported = true WHERE state = 'refused'",
        "ALTER TABLE samples DROP COLUMN up",
        "CREATE INDEX rollouts_source ON rollouts (source, policy_version)",
        "CREATE INDEX feedback_kind ON feedback (kind, accepted_time)",
        "CREATE INDEX scores_time ON scores (scored_time)",
        "CREATE INDEX samples_topic ON samples (topic, objective, user_hash)",
    ):
        connection.execute(text(statement))
    metadata.create_all(connection)
    _describe_rollouts(connection)
    _make_samples(connection)


def _describe_rollouts(connection: Connection) -> None:
    last = ""
    while True:
        query = text(
            "SELECT completion_id, prompt_tokens, sampling FROM rollouts"
            " WHERE completion_id > :last ORDER BY completion_id LIMIT :limit"
        )
        rows = connection.execute(query, {"last": last, "limit": ROWS_AT_ONCE}).all()
        if not rows:
            return
        connection.execute(
            text(
                "UPDATE rollouts SET prompt_sha256 = :hash, group_size = :size"
                " WHERE completion_id = :id"
            ),
            [
                {
                    "id": row.completion_id,
                    "hash": hashlib.sha256(row.prompt_tokens).hexdigest(),
                    "size": json.loads(row.sampling)["n"],
                }
                for row in rows
            ],
        )
        last = rows[-1].completion_id


def _make_samples(connection: Connection) -> None:
    """Samples of the feedback that version 1 stored and made nothing of."""
    from tuneloop.learner.ledger.routing import ranked_completions, samples_of

    query = text(
        "SELECT * FROM feedback WHERE kind IN ('ranking', 'demonstration', 'rating')"
        " ORDER BY accepted_time, feedback_id"
    )
    for row in connection.execute(query).mappings().all():
        for table, made in (
            ("rankings", ranked_completions(dict(row))),
            ("samples", samples_of(dict(row), row["accepted_time"])),
        ):
            for values in made:
                names = ", ".join(values)
                places = ", ".join(f":{name}" for name in values)
                connection.execute(
                    text(f"INSERT INTO {table} ({names}) VALUES ({places})"),  # noqa: S608
                    values,
                )


def _settle(connection: Connection) -> None:
    """Apply the rules of verdicts where there is more than one, and of siblings."""
    from tuneloop.learner.ledger.votes import settle_siblings, settle_votes

    several = text(
        "SELECT objective, topic, user_hash FROM samples WHERE topic <> ''"
        " GROUP BY objective, topic, user_hash HAVING count(*) > 1"
    )
    for row in connection.execute(several).all():
        settle_votes(connection, *row)
    groups = text(
        "SELECT DISTINCT group_id FROM rollouts JOIN samples"
        " ON samples.completion_id = rollouts.completion_id WHERE samples.kind = 'siblings'"
    )
    for group_id in connection.execute(groups).scalars().all():
        settle_siblings(connection, group_id, 0.0)


def _feedback_can_end(connection: Connection) -> None:
    """2 to 3: feedback is retracted and expires."""
    for statement in (
        "ALTER TABLE feedback ADD COLUMN status VARCHAR NOT NULL DEFAULT 'accepted'",
        "CREATE INDEX feedback_time ON feedback (accepted_time)",
    ):
        connection.execute(text(statement))
    metadata.create_all(connection)


steps: Mapping[int, Callable[[Connection], None]] = {
    1: _all_kinds_of_feedback,
    2: _feedback_can_end,
}
"""By the version they start from."""
