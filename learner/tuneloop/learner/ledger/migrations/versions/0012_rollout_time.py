"""Find old rollouts without reading all of them."""

from alembic import op

revision = "0012_rollout_time"
down_revision = "0011_features"


def upgrade() -> None:
    """Add the index."""
    op.create_index("rollouts_time", "rollouts", ["finished_time"])
