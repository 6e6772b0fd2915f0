"""An index of versions by parent: staleness is counted along the tree of versions."""

from alembic import op

revision = "0007_version_parents"
down_revision = "0006_metrics"


def upgrade() -> None:
    """Make the index."""
    op.create_index("versions_parent", "versions", ["model", "parent"])
