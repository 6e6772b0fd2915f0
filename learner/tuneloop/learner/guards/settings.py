"""Settings of the guards: TUNELOOP_LEARNER_GUARDS__…."""

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tuneloop.feedback import METRIC_NAME


class GuardSettings(BaseModel):
    """How much one user may weigh, and when alarms are raised."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    user_share: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="most that one user's judgements weigh in a batch, of 1; 1 is no limit, and "
        "with fewer users than it allows for each has an equal share",
    )
    tenant_share: float = Field(
        default=1.0, gt=0, le=1, description="the same for one tenant; 1 is no limit"
    )
    judgements_in_full: int = Field(
        default=64,
        ge=0,
        description="judgements of one user that count in full, or as many as the median user "
        "gave; later ones weigh less, so that all together grow like a square root; 0 is no bound",
    )
    probation: int = Field(
        default=8,
        ge=0,
        description="first judgements of a user that weigh less, unless users who are known agree "
        "with them before; 0 is none",
    )
    probation_weight: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="least that those weigh, where most judgements come from known users",
    )
    user_days: float = Field(
        default=30.0, gt=0, description="days over which the judgements of a user are counted"
    )
    rater_weights: bool = Field(
        default=True,
        description="whether judgements weigh less of raters whom the others contradict",
    )
    unpredictable_weight: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="least that judgements weigh while nobody could expect them from what others "
        "say of similar answers; 1 is no such limit",
    )
    window: int = Field(
        default=256,
        ge=16,
        description="latest thumbs in which alarms look for a user who dominates",
    )
    least: int = Field(
        default=30, ge=5, description="thumbs, or answers, below which figures raise no alarm"
    )
    dominance: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="share of the latest thumbs at which one user dominates",
    )
    kl: float = Field(
        default=0.3, gt=0, description="KL to the base model, in nats per token, that is an alarm"
    )
    logprob_gap: float = Field(
        default=0.1,
        gt=0,
        description="mean difference of generation's and the learner's log-probs by the same "
        "weights, in nats per token, that is an alarm",
    )
    length_ratio: float = Field(
        default=2.0,
        gt=1,
        description="answers so many times longer or shorter than before are an alarm",
    )
    repetition: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="rise of the share of repeated 4-grams that is an alarm",
    )
    rebuild_retracted: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of what one version was trained on that, once retracted, makes the "
        "learner rebuild from before it; absent: never",
    )
    hold: bool = Field(
        default=False, description="whether new versions stay candidates while there is an alarm"
    )
    metric: str = Field(
        default="",
        description="name of a metric that holds new versions, whatever hold says, while the "
        "versions that serve are shown to be worse at it than the anchor; empty: none",
    )
    metric_higher_is_better: bool = Field(
        default=True, description="whether a higher value of the metric is better"
    )
    metric_anchor: int = Field(
        default=0, ge=0, description="version that the metric is compared with"
    )
    metric_margin: float = Field(
        default=0.0,
        ge=0,
        description="how much worse than the anchor is borne, in the unit of the metric",
    )

    @field_validator("metric")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if value and METRIC_NAME.fullmatch(value) is None:
            raise ValueError(f"{value!r} is no name of a metric")
        return value
