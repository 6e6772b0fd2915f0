"""What the gate requires of a candidate: `TUNELOOP_LEARNER_GATE__…`."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class GateSettings(BaseModel):
    """Bounds of the gate. They catch what is broken, and leave taste to the users."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    prompts: int = Field(
        default=12,
        ge=2,
        le=512,
        description="eval prompts that candidate and stable answer, at most",
    )
    max_tokens: int = Field(
        default=32, ge=8, description="longest answer to one, in tokens, 8 or more"
    )
    concurrency: int = Field(default=4, ge=1, description="of them answered at once")
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1, description="of the interval of the difference in reward"
    )
    reward_margin: float = Field(
        default=0.0,
        ge=0,
        description="loss of mean reward that is borne: a candidate fails when the whole interval "
        "of candidate minus stable lies below minus this",
    )
    max_change: float = Field(
        default=1.0,
        gt=0,
        description="largest norm of the change, as a share of the norm of the base weights "
        "changed",
    )
    max_kl: float = Field(
        default=8.0,
        gt=0,
        description="largest KL to the base model, in nats per token of its answers",
    )
    min_length_ratio: float = Field(
        default=0.2, ge=0, lt=1, description="smallest mean length, as a share of the stable one's"
    )
    max_length_ratio: float = Field(
        default=5.0, gt=1, description="largest mean length, as a share of the stable one's"
    )
    max_repetition_rise: float = Field(
        default=0.3, ge=0, le=1, description="largest rise of the share of repeated 4-grams"
    )
    max_broken_rise: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="largest rise of the share of answers that are empty, or that hold tokens of "
        "the chat template",
    )
    set_aside_after: int = Field(
        default=2, ge=1, description="quarantines after which the samples behind them are set aside"
    )
    pause_after: int = Field(
        default=5,
        ge=1,
        description="candidates failed in a row after which the learner pauses itself",
    )

    @model_validator(mode="after")
    def _samples_before_learner(self) -> Self:
        if self.pause_after < self.set_aside_after:
            raise ValueError("pause_after must be set_aside_after or more")
        return self
