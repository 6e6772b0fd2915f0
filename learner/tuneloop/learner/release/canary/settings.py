"""How a canary is run: `TUNELOOP_LEARNER_CANARY__…`."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tuneloop.feedback import METRIC_NAME


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
    decide_by: Literal["thumbs", "reward", "metric"] = Field(
        default="thumbs", description="what a promotion is decided by: thumbs, reward or metric"
    )
    metric: str = Field(
        default="",
        description="name of a metric that is compared as well, and rolls back where it is shown "
        "to be worse; empty: none",
    )
    higher_is_better: bool = Field(
        default=True, description="whether a higher value of the metric is better"
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

    @field_validator("metric")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if value and METRIC_NAME.fullmatch(value) is None:
            raise ValueError(f"{value!r} is no name of a metric")
        return value

    @model_validator(mode="after")
    def _decided_by_what_there_is(self) -> Self:
        if self.decide_by == "metric" and not self.metric:
            raise ValueError("decide_by=metric needs the name of a metric")
        return self
