"""Who was forgotten, which alarms are raised, and what a version was trained with."""

import sqlalchemy as sa
from alembic import op

revision = "0005_guards"
down_revision = "0004_decisions"


def upgrade() -> None:
    """Make the tables and the column."""
    op.create_table(
        "forgotten",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("user_hash", sa.String, nullable=False),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("rollouts", sa.Integer, nullable=False),
        sa.Column("feedback", sa.Integer, nullable=False),
        sa.Column("policy_versions", sa.Text, nullable=False),
        sa.Column("reward_model_versions", sa.Text, nullable=False),
    )
    op.create_index("ix_forgotten_user_hash", "forgotten", ["user_hash"])
    op.create_table(
        "alarms",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("raised_time", sa.Float, nullable=False),
        sa.Column("cleared_time", sa.Float, nullable=True),
        sa.Column("numbers", sa.Text, nullable=False),
    )
    op.create_index("alarms_name", "alarms", ["name", "raised_time"])
    op.add_column("versions", sa.Column("settings", sa.Text, nullable=False, server_default="{}"))
