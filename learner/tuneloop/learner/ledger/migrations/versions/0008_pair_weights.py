"""The pairs of one comparison weigh 1 together, as those of a ranking do."""

from alembic import op

revision = "0008_pair_weights"
down_revision = "0007_version_parents"


def upgrade() -> None:
    """Share the weight. Pairs of opposite thumbs follow when their rules are applied."""
    op.execute(
        """
        UPDATE samples SET weight = 1.0 / (
            SELECT count(*) FROM samples AS other
            WHERE other.feedback_id = samples.feedback_id
            AND other.objective = samples.objective AND other.kind = 'pair'
        )
        WHERE kind = 'pair' AND feedback_id IS NOT NULL
        """
    )
