"""How a canary is run: `TUNELOOP_LEARNER_CANARY__…`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class CanarySettings(BaseModel):
    """How long and on how many users a new version is tried, and what decides."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(
        default=0.1,
        gt=0,
        le=0.9,
        description="share of the users who get the canary, above 0 to 0.9",
    )
    alpha: float = Field(
        default=0.05,
        gt=0,
        lt=0.5,
        description="chance that a canary as good as stable is rolled back, and chance that one "
        "worse by more than the margin is promoted, over all looks together",
    )
    margin: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="how much worse than stable a canary may be and still be promoted, "
        "of a range from 0 to 1",
    )
    decide_by: Literal["thumbs", "reward"] = Field(
        default="thumbs", description="what a promotion is decided by: thumbs or reward"
    )
    min_events: int = Field(
        default=30,
        ge=1,
        description="users (for errors: requests) of each arm before anything is decided",
    )
    deadline_seconds: float = Field(
        default=86_400.0, gt=0, description="after which deadline_action is taken"
    )
    deadline_action: Literal["hold", "promote", "roll_back"] = Field(
        default="hold",
        description="where traffic was too little to decide: hold (stable stays, the version is "
        "a candidate for a person to promote), promote or roll_back",
    )
    address: str = Field(
        default="",
        description="host:port of the replica that serves canaries of full weights; "
        "empty: generation_address",
    )
