"""Metrics that applications measure of completions."""

import sqlalchemy as sa
from alembic import op

revision = "0006_metrics"
down_revision = "0005_guards"


def upgrade() -> None:
    """Add the columns to feedback."""
    op.add_column("feedback", sa.Column("metric", sa.String, nullable=True))
    op.add_column("feedback", sa.Column("measured", sa.Float, nullable=True))
    op.add_column("feedback", sa.Column("is_boolean", sa.Boolean, nullable=True))
    op.create_index("feedback_metric", "feedback", ["metric", "accepted_time"])
