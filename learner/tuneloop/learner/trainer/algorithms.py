"""The algorithms by name: what each learns from, how it plans a batch, how often it reuses one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.learner.models.policy import PolicyModel
from tuneloop.learner.objectives.base import Plan
from tuneloop.learner.objectives.dpo import plan_dpo
from tuneloop.learner.objectives.grpo import plan_grpo
from tuneloop.learner.objectives.kto import plan_kto
from tuneloop.learner.objectives.ppo import plan_ppo
from tuneloop.learner.objectives.sft import plan_sft
from tuneloop.learner.samples import (
    DemonstrationSample,
    PairSample,
    ScoredGroup,
    ScoredSample,
    ThumbSample,
)
from tuneloop.learner.trainer.adaptive import StepControls
from tuneloop.learner.trainer.settings import TrainerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """One way for the policy to learn."""

    consumes: type
    """The sample type."""
    plan: Callable[[PolicyModel, Sequence[Any], TrainerSettings, StepControls], Plan]
    epochs: Callable[[TrainerSettings], int] = lambda settings: 1
    """Optimizer steps on one batch."""


algorithms: Mapping[str, Algorithm] = {
    "sft": Algorithm(consumes=DemonstrationSample, plan=plan_sft),
    "kto": Algorithm(consumes=ThumbSample, plan=plan_kto),
    "dpo": Algorithm(consumes=PairSample, plan=plan_dpo),
    "ppo": Algorithm(consumes=ScoredSample, plan=plan_ppo, epochs=lambda s: s.ppo_epochs),
    "grpo": Algorithm(consumes=ScoredGroup, plan=plan_grpo, epochs=lambda s: s.grpo_epochs),
}
