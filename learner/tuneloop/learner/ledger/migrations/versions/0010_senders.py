"""Which API key each feedback came with, and an index to count a user's judgements."""

import sqlalchemy as sa
from alembic import op

revision = "0010_senders"
down_revision = "0009_effects"


def upgrade() -> None:
    """Add the columns, empty for feedback so far, and the indexes."""
    for name in ("api_key_id", "api_key_name"):
        op.add_column("feedback", sa.Column(name, sa.String, nullable=False, server_default=""))
    op.create_index(
        "feedback_user_time", "feedback", ["user_hash", "accepted_time", "kind", "sequence"]
    )
    op.create_index("feedback_key", "feedback", ["api_key_name"])
    op.create_index("feedback_key_id", "feedback", ["api_key_id"])
