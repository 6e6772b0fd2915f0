"""What is deleted in time: `TUNELOOP_LEARNER_RETENTION__…`."""

from pydantic import BaseModel, ConfigDict, Field


class RetentionSettings(BaseModel):
    """Bounds of what grows with traffic; judgements and what was learned from them stay."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rollout_days: float | None = Field(
        default=30.0,
        gt=0,
        description="age past which rollouts that nobody judged are deleted, or emptied if a "
        "policy-gradient step used them; absent: none",
    )
    rollouts: int | None = Field(
        default=None,
        ge=1,
        description="such rollouts kept at most, the newest ones; absent: no limit",
    )
    versions: int = Field(
        default=100,
        ge=1,
        description="newest versions of each model whose weights are kept, beside those that "
        "serve, wait for a decision or can be rolled back to",
    )
    version_gib: float | None = Field(
        default=None,
        gt=0,
        description="GiB of weights kept of each model beside those, the newest first; absent: no "
        "limit",
    )
