"""Signals: what users do with answers."""

import sqlalchemy as sa
from alembic import op

revision = "0014_signals"
down_revision = "0013_sessions"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "signals",
        sa.Column("signal_id", sa.String, primary_key=True),
        sa.Column("user_hash", sa.String, primary_key=True),
        sa.Column("tenant", sa.String, nullable=False),
        sa.Column("completion_id", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("distance", sa.Float, nullable=True),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("api_key_id", sa.String, nullable=False),
        sa.Column("accepted_time", sa.Float, nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
    )
    op.create_index("signals_completion", "signals", ["completion_id", "user_hash"])
    op.create_index("signals_user", "signals", ["user_hash"])
    op.create_index("signals_time", "signals", ["accepted_time"])
