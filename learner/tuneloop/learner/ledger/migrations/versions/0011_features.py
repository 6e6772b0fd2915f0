"""What judged answers are like."""

import sqlalchemy as sa
from alembic import op

revision = "0011_features"
down_revision = "0010_senders"


def upgrade() -> None:
    """Add the column, without a value for judgements so far."""
    op.add_column("samples", sa.Column("features", sa.LargeBinary, nullable=True))
