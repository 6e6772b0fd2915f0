"""Decisions about versions, and what a version had learned from before that was put back."""

import sqlalchemy as sa
from alembic import op

revision = "0004_decisions"
down_revision = "0003_feedback_ends"


def upgrade() -> None:
    """Make their tables."""
    op.create_table(
        "decisions",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("outcome", sa.String, nullable=False),
        sa.Column("numbers", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("time", sa.Float, nullable=False),
    )
    op.create_index("decisions_version", "decisions", ["model", "version"])
    op.create_table(
        "undone_uses",
        sa.Column("model", sa.String, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("sample_id", sa.String, primary_key=True),
        sa.Column("objective", sa.String, primary_key=True),
        sa.Column("epoch", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("blamed", sa.Boolean, nullable=False),
    )
    op.create_index("undone_uses_sample", "undone_uses", ["sample_id", "objective"])
