"""The first ledger: rollouts, feedback, scores, samples, and what became of them."""

import sqlalchemy as sa
from alembic import op

revision = "0001_first"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    events()
    learning()


def events() -> None:
    """What came from the streams."""
    op.create_table(
        "facts",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_table(
        "rollouts",
        sa.Column("completion_id", sa.String, primary_key=True),
        sa.Column("group_id", sa.String, nullable=False),
        sa.Column("policy", sa.String, nullable=False),
        sa.Column("tenant", sa.String, nullable=False),
        sa.Column("user_hash", sa.String, nullable=False),
        sa.Column("messages", sa.Text, nullable=False),
        sa.Column("prompt_text", sa.Text, nullable=False),
        sa.Column("completion_text", sa.Text, nullable=False),
        sa.Column("prompt_tokens", sa.LargeBinary, nullable=False),
        sa.Column("completion_tokens", sa.LargeBinary, nullable=False),
        sa.Column("generation_logprobs", sa.LargeBinary, nullable=False),
        sa.Column("spans", sa.Text, nullable=False),
        sa.Column("oldest_version", sa.Integer, nullable=False),
        sa.Column("policy_version", sa.Integer, nullable=False),
        sa.Column("finish_reason", sa.String, nullable=False),
        sa.Column("temperature", sa.Float, nullable=False),
        sa.Column("sampling", sa.Text, nullable=False),
        sa.Column("finished_time", sa.Float, nullable=False),
    )
    op.create_index("ix_rollouts_user_hash", "rollouts", ["user_hash"])
    op.create_index("rollouts_group", "rollouts", ["group_id"])
    op.create_table(
        "feedback",
        sa.Column("feedback_id", sa.String, primary_key=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("tenant", sa.String, nullable=False),
        sa.Column("user_hash", sa.String, nullable=False),
        sa.Column("completion_id", sa.String, nullable=False),
        sa.Column("completion_ids", sa.Text, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("up", sa.Boolean, nullable=True),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("accepted_time", sa.Float, nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
    )
    op.create_index("ix_feedback_user_hash", "feedback", ["user_hash"])
    op.create_index("feedback_votes", "feedback", ["completion_id", "user_hash", "kind"])
    op.create_table(
        "scores",
        sa.Column("completion_id", sa.String, primary_key=True),
        sa.Column("reward_model_version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("reward", sa.Float, nullable=True),
        sa.Column("informative", sa.Boolean, nullable=False),
        sa.Column("results", sa.Text, nullable=False),
        sa.Column("scored_time", sa.Float, nullable=False),
    )


def learning() -> None:
    """What was made of it."""
    op.create_table(
        "samples",
        sa.Column("sample_id", sa.String, primary_key=True),
        sa.Column("objective", sa.String, primary_key=True),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("note", sa.Text, nullable=True),
        sa.Column("completion_id", sa.String, nullable=False),
        sa.Column("rejected_id", sa.String, nullable=True),
        sa.Column("up", sa.Boolean, nullable=True),
        sa.Column("user_hash", sa.String, nullable=False),
        sa.Column("feedback_id", sa.String, nullable=True),
        sa.Column("accepted_time", sa.Float, nullable=False),
        sa.Column("recorded_time", sa.Float, nullable=False),
    )
    op.create_index("samples_open", "samples", ["objective", "state", "accepted_time"])
    op.create_index("samples_completion", "samples", ["completion_id", "objective", "user_hash"])
    op.create_index("samples_rejected", "samples", ["rejected_id"])
    op.create_index("samples_feedback", "samples", ["feedback_id"])
    op.create_index("samples_user", "samples", ["user_hash"])
    op.create_table(
        "steps",
        sa.Column("model", sa.String, primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("checkpoint", sa.String, nullable=False),
        sa.Column("skipped", sa.Boolean, nullable=False),
        sa.Column("metrics", sa.Text, nullable=False),
        sa.Column("committed_time", sa.Float, nullable=False),
    )
    op.create_table(
        "uses",
        sa.Column("sample_id", sa.String, nullable=False),
        sa.Column("objective", sa.String, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("policy_version", sa.Integer, nullable=True),
        sa.UniqueConstraint("sample_id", "objective", "epoch"),
        sa.ForeignKeyConstraint(["model", "step"], ["steps.model", "steps.step"]),
        sa.ForeignKeyConstraint(
            ["sample_id", "objective"], ["samples.sample_id", "samples.objective"]
        ),
    )
    op.create_index("uses_step", "uses", ["model", "step"])
    op.create_index("uses_version", "uses", ["model", "policy_version"])
    op.create_index("uses_objective", "uses", ["objective"])
    versions()


def versions() -> None:
    """What was published and released."""
    op.create_table(
        "versions",
        sa.Column("model", sa.String, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("policy", sa.String, nullable=False),
        sa.Column("parent", sa.Integer, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("stage", sa.String, nullable=False),
        sa.Column("first_step", sa.Integer, nullable=False),
        sa.Column("last_step", sa.Integer, nullable=False),
        sa.Column("manifest", sa.Text, nullable=False),
        sa.Column("uri", sa.String, nullable=False),
        sa.Column("manifest_sha256", sa.String, nullable=False),
        sa.Column("created_time", sa.Float, nullable=False),
        sa.Column("activated_time", sa.Float, nullable=True),
        sa.Column("abandoned", sa.Boolean, nullable=False),
    )
    op.create_table(
        "promotions",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("previous", sa.Integer, nullable=False),
        sa.Column("action", sa.String, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("time", sa.Float, nullable=False),
    )
