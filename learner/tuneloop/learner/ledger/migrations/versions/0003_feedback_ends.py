"""Feedback is retracted and expires."""

import sqlalchemy as sa
from alembic import op

revision = "0003_feedback_ends"
down_revision = "0002_all_kinds_of_feedback"


def upgrade() -> None:
    """Add what has become of feedback."""
    op.add_column(
        "feedback",
        sa.Column("status", sa.String, nullable=False, server_default="accepted"),
    )
    op.create_index("feedback_time", "feedback", ["accepted_time"])
    op.create_table(
        "retractions",
        sa.Column("feedback_id", sa.String, primary_key=True),
        sa.Column("user_hash", sa.String, nullable=False),
        sa.Column("retracted_time", sa.Float, nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
    )
    op.create_index("ix_retractions_user_hash", "retractions", ["user_hash"])
