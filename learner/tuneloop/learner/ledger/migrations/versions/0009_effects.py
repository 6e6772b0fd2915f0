"""How much likelier or less likely a version made what its feedback is about."""

import sqlalchemy as sa
from alembic import op

revision = "0009_effects"
down_revision = "0008_pair_weights"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "effects",
        sa.Column("sample_id", sa.String, primary_key=True),
        sa.Column("objective", sa.String, primary_key=True),
        sa.Column("part", sa.String, primary_key=True),
        sa.Column("policy_version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("logprob_before", sa.Float, nullable=False),
        sa.Column("logprob_after", sa.Float, nullable=False),
    )
