"""Sessions: turns of one conversation that are judged together."""

import sqlalchemy as sa
from alembic import op

revision = "0013_sessions"
down_revision = "0012_rollout_time"


def upgrade() -> None:
    """Add the columns: what is recorded already has no session."""
    for table in ("rollouts", "feedback", "forgotten"):
        op.add_column(table, sa.Column("session_id", sa.String, nullable=False, server_default=""))
    op.add_column("forgotten", sa.Column("tenant", sa.String, nullable=False, server_default=""))
    op.create_index("rollouts_session", "rollouts", ["session_id", "tenant"])
    op.create_index("feedback_session", "feedback", ["session_id", "tenant"])
    op.create_index("forgotten_session", "forgotten", ["session_id", "tenant"])
