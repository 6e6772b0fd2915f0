"""Settings of feedback and signals as they come in: which of them count, and for how long."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings

DAY = 86_400.0


class FollowUpJudgeSettings(BaseModel):
    """A judge of follow-ups behind an OpenAI-compatible endpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    url: str = Field(
        default="",
        pattern=r"^(https?://.+)?$",
        description="URL of an OpenAI-compatible endpoint, such as http://127.0.0.1:9000/v1; "
        "empty: the base model judges, in the learner",
    )
    model: str = Field(default="", description="name of the model there")
    api_key: SecretStr | None = Field(default=None, description="key of the endpoint")
    votes: int = Field(default=3, ge=1, le=16, description="times it is asked about each, 1 to 16")

    @model_validator(mode="after")
    def _model_of_endpoint(self) -> "FollowUpJudgeSettings":
        if bool(self.url) != bool(self.model):
            raise ValueError("url and model belong together: set both or neither")
        return self


class FeedbackSettings(BaseSettings):
    """Part of the learner's settings."""

    feedback_max_age_days: float | None = Field(
        None, gt=0, description="age past which feedback is not learned from; absent: none"
    )
    rollout_wait_days: float | None = Field(
        7.0, gt=0, description="longest wait of feedback for rollouts: the stream keeps them 7 days"
    )
    session_credit: Literal["last", "each", "discounted"] = Field(
        "each", description="turns that feedback on a session teaches: each, last or discounted"
    )
    session_discount: float = Field(
        0.9, gt=0, le=1, description="what a turn weighs of the one after it, where discounted"
    )
    comments: Literal["off", "train"] = Field(
        "off", description="off (comments are only kept), or train (they teach the policy: sdft)"
    )
    signals: Literal["off", "reward_model"] = Field(
        "off", description="what learns from signals, which are what users do with answers"
    )
    follow_ups: Literal["off", "judged"] = Field(
        "off",
        description="off, or judged: a judge reads in the next message of a session whether its "
        "user is satisfied, as a signal; where comments train, complaints are hints",
    )
    follow_up_judge: FollowUpJudgeSettings = Field(
        FollowUpJudgeSettings(), description="who judges them"
    )

    @property
    def feedback_max_age(self) -> float | None:
        """In seconds."""
        return None if self.feedback_max_age_days is None else DAY * self.feedback_max_age_days

    @property
    def rollout_wait(self) -> float | None:
        """In seconds."""
        return None if self.rollout_wait_days is None else DAY * self.rollout_wait_days

    def oldest_feedback(self, now: float) -> float:
        """When what may still be learned from was accepted, in seconds since the epoch."""
        return 0.0 if self.feedback_max_age is None else now - self.feedback_max_age
