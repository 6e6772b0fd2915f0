"""Follow-ups: what users wrote after answers, and what a judge read in it."""

import sqlalchemy as sa
from alembic import op

revision = "0015_follow_ups"
down_revision = "0014_signals"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "follow_ups",
        sa.Column("completion_id", sa.String, primary_key=True),
        sa.Column("next_id", sa.String, nullable=False),
        sa.Column("user_hash", sa.String, nullable=False),
        sa.Column("asked_time", sa.Float, nullable=False),
        sa.Column("judged_time", sa.Float, nullable=True),
        sa.Column("label", sa.String, nullable=True),
        sa.Column("probability", sa.Float, nullable=True),
        sa.Column("note", sa.Text, nullable=True),
    )
    op.create_index("follow_ups_next", "follow_ups", ["next_id"])
    op.create_index("ix_follow_ups_user_hash", "follow_ups", ["user_hash"])
    op.create_index("follow_ups_time", "follow_ups", ["judged_time", "asked_time"])
