"""Topics and verdicts, sources of rollouts, samples of kinds that were only kept."""

import hashlib
import json

import sqlalchemy as sa
from alembic import op

revision = "0002_all_kinds_of_feedback"
down_revision = "0001_first"

ROWS_AT_ONCE = 1000


def upgrade() -> None:
    """Add what later kinds of feedback need; `migration` makes samples of what was only kept."""
    rollouts()
    samples()
    op.create_index("feedback_kind", "feedback", ["kind", "accepted_time"])
    op.create_index("scores_time", "scores", ["scored_time"])
    op.create_table(
        "rankings",
        sa.Column("feedback_id", sa.String, primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("completion_id", sa.String, nullable=False),
    )
    op.create_index("ix_rankings_completion_id", "rankings", ["completion_id"])
    op.create_table("held_out", sa.Column("prompt_sha256", sa.String, primary_key=True))
    op.create_table(
        "reference_logprobs",
        sa.Column("sequence", sa.String, primary_key=True),
        sa.Column("logprobs", sa.LargeBinary, nullable=False),
    )


def rollouts() -> None:
    """Where they come from and what they answer."""
    for column in (
        sa.Column("source", sa.String, nullable=False, server_default="user"),
        sa.Column("columns", sa.Text, nullable=False, server_default="{}"),
        sa.Column("group_size", sa.Integer, nullable=False, server_default="1"),
        sa.Column("prompt_sha256", sa.String, nullable=False, server_default=""),
    ):
        op.add_column("rollouts", column)
    op.create_index("rollouts_source", "rollouts", ["source", "policy_version"])
    describe(op.get_bind())


def describe(connection: sa.Connection) -> None:
    """Fill in what each rollout's tokens and sampling say."""
    page = sa.text(
        "SELECT completion_id, prompt_tokens, sampling FROM rollouts"
        " WHERE completion_id > :last ORDER BY completion_id LIMIT :limit"
    )
    filled = sa.text(
        "UPDATE rollouts SET prompt_sha256 = :hash, group_size = :size WHERE completion_id = :id"
    )
    last = ""
    while rows := connection.execute(page, {"last": last, "limit": ROWS_AT_ONCE}).all():
        connection.execute(
            filled,
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


def samples() -> None:
    """What a verdict is about and what it says."""
    for column in (
        sa.Column("kind", sa.String, nullable=False, server_default="score"),
        sa.Column("weight", sa.Float, nullable=False, server_default="1"),
        sa.Column("topic", sa.String, nullable=False, server_default=""),
        sa.Column("verdict", sa.String, nullable=False, server_default=""),
        sa.Column("current", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("reported", sa.Boolean, nullable=False, server_default=sa.false()),
    ):
        op.add_column("samples", column)
    for statement in (
        "UPDATE samples SET kind = 'thumb', topic = 'thumb:' || completion_id,"
        " verdict = CASE WHEN up THEN 'up' ELSE 'down' END WHERE up IS NOT NULL",
        "UPDATE samples SET kind = CASE WHEN feedback_id IS NULL THEN 'siblings' ELSE 'pair' END,"
        " verdict = completion_id WHERE rejected_id IS NOT NULL",
        "UPDATE samples SET topic = CASE WHEN completion_id < rejected_id"
        " THEN 'pair:' || completion_id || '|' || rejected_id"
        " ELSE 'pair:' || rejected_id || '|' || completion_id END WHERE kind = 'pair'",
        # Dead letters of these were never sent and would only be news of old.
        "UPDATE samples SET reported = true WHERE state = 'refused'",
    ):
        op.execute(statement)
    op.drop_column("samples", "up")
    op.create_index("samples_topic", "samples", ["topic", "objective", "user_hash"])
