"""What the gate requires of a candidate: `TUNELOOP_LEARNER_GATE__…`."""

import logging
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

logger = logging.getLogger("tuneloop.learner")


class GateSettings(BaseModel):
    """Bounds of the gate. They catch what is broken, and leave taste to the users."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    abilities: bool = Field(
        default=True,
        description="whether every version is scored on the ability suite that comes with tuneloop",
    )
    suites: tuple[Path, ...] = Field(
        default=(),
        description='JSON list of further suites: jsonl files of {"prompt", "choices", "answer"} '
        'or {"prompt", "reference"}',
    )
    suite_items: int = Field(
        default=24,
        ge=2,
        description="items of each suite that a version is scored on, at most: on a CPU a hundred "
        "take tens of seconds",
    )
    lm_eval_tasks: tuple[str, ...] = Field(
        default=(),
        description='JSON list of tasks of lm-eval that count like suites, such as ["arc_easy"]',
    )
    lm_eval_limit: int = Field(
        default=100, ge=2, description="documents of each of those tasks, at most"
    )
    suite_margin: float = Field(
        default=0.03,
        ge=0,
        description="loss of a suite's mean that is borne, as a share of the standard deviation of "
        "version 0's values between items: a candidate fails when the whole interval against the "
        "stable version lies below minus this",
    )
    suite_drift: float = Field(
        default=0.1, ge=0, description="the same against version 0, for all versions together"
    )
    prompts: int = Field(
        default=12,
        ge=2,
        le=512,
        description="eval prompts that candidate and stable answer, at most",
    )
    max_tokens: int = Field(
        default=32, ge=8, description="longest answer to one, in tokens, 8 or more"
    )
    confidence: float = Field(
        default=0.95,
        gt=0.5,
        lt=1,
        description="of the intervals of the differences in reward and on suites",
    )
    reward_margin: float = Field(
        default=0.03,
        ge=0,
        description="loss of mean reward that is borne, as a share of the standard deviation of "
        "the stable version's rewards between prompts: a candidate fails when the whole interval "
        "of candidate minus stable lies below minus this",
    )
    max_change: float = Field(
        default=1.0,
        gt=0,
        description="largest norm of the change, as a share of the norm of the base weights "
        "changed",
    )
    max_kl: float = Field(
        default=1.0,
        gt=0,
        description="largest KL to the base model, in nats per token: exact, on the trainer's "
        "answers to questions of the suites; without them an estimate on the answers to the eval "
        "prompts",
    )
    max_kl_step: float = Field(
        default=0.3,
        gt=0,
        description="largest rise of that KL since the stable version, in nats per token for every "
        "full step of evidence learned from since, and at least one",
    )
    min_length_ratio: float = Field(
        default=0.4, ge=0, lt=1, description="smallest mean length, as a share of the stable one's"
    )
    max_length_ratio: float = Field(
        default=2.5, gt=1, description="largest mean length, as a share of the stable one's"
    )
    max_repetition_rise: float = Field(
        default=0.15, ge=0, le=1, description="largest rise of the share of repeated 4-grams"
    )
    max_broken_rise: float = Field(
        default=0.1,
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

    @model_validator(mode="before")
    @classmethod
    def _without_old_names(cls, given: Any) -> Any:
        """Ignore `concurrency` for one release: the trainer answers all prompts at once."""
        if isinstance(given, dict) and "concurrency" in given:
            logger.warning("gate: concurrency has no effect any more; remove it")
            given = {name: value for name, value in given.items() if name != "concurrency"}
        return given

    @model_validator(mode="after")
    def _samples_before_learner(self) -> Self:
        if self.pause_after < self.set_aside_after:
            raise ValueError("pause_after must be set_aside_after or more")
        return self
