"""Thoughts before answers, and what applications note about requests."""

import sqlalchemy as sa
from alembic import op

revision = "0016_thoughts"
down_revision = "0015_follow_ups"


def upgrade() -> None:
    """Add the columns: what is recorded already has neither."""
    for name, kind, default in (
        ("reasoning_text", sa.Text, ""),
        ("reasoning_tokens", sa.Integer, "0"),
        ("tags", sa.Text, "{}"),
    ):
        column = sa.Column(name, kind, nullable=False, server_default=default)
        op.add_column("rollouts", column)
