"""What adapts from step to step: running rewards, KL control, critic warm-up; and its state."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from tuneloop.errors import CorruptData
from tuneloop.learner import kl_control
from tuneloop.learner.class_balance import ClassBalance
from tuneloop.learner.plans.dials import Dials
from tuneloop.learner.rewards import RewardStatistics, priced_reward
from tuneloop.learner.samples import PolicySample, ScoredGroup, ScoredSample, ThumbSample
from tuneloop.learner.trainer_settings import TrainerSettings

Samples = Mapping[str, Sequence[PolicySample]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering:
    """Where it stands before a step; a step that is skipped leaves it as it was."""

    ppo_rewards: RewardStatistics = field(default_factory=RewardStatistics)
    grpo_rewards: RewardStatistics = field(default_factory=RewardStatistics)
    thumbs: ClassBalance = field(default_factory=ClassBalance)
    kl_factor: float = 1.0
    """See `Dials.kl_factor`."""
    kl_level: int = 0
    """How far training is backed off, from 0."""
    ppo_batches: int = 0
    """Batches PPO has learned from."""

    def with_rewards(self, samples: Samples, settings: TrainerSettings) -> Self:
        """Count the rewards of a batch, which are then standardised by what includes them."""
        given = [s for s in samples.get("ppo", ()) if isinstance(s, ScoredSample)]
        groups = [g for g in samples.get("grpo", ()) if isinstance(g, ScoredGroup)]
        priced = [priced_reward(s, settings) for group in groups for s in group.samples]
        thumbs = [s for s in samples.get("kto", ()) if isinstance(s, ThumbSample)]
        decay = settings.reward_decay
        return replace(
            self,
            ppo_rewards=self.ppo_rewards.updated((s.reward for s in given), decay),
            grpo_rewards=self.grpo_rewards.updated(
                (reward for reward in priced if not math.isnan(reward)), decay
            ),
            thumbs=self.thumbs.updated(thumbs, decay),
        )

    def dials(self, settings: TrainerSettings) -> Dials:
        """What the plans of this step are told."""
        return Dials(
            kl_factor=self.kl_factor,
            kl_pull=kl_control.pull(self.kl_level),
            critic_only=self.ppo_batches < settings.critic_warmup_steps,
            ppo_rewards=self.ppo_rewards if settings.normalize_rewards else None,
            grpo_rewards=self.grpo_rewards,
            desirable_share=self.thumbs.desirable_share,
        )

    @property
    def rate_factor(self) -> float:
        """Factor of the learning rate."""
        return kl_control.rate_factor(self.kl_level)

    def after(
        self, metrics: Mapping[str, float], samples: Samples, settings: TrainerSettings
    ) -> Self:
        """Where it stands after a step on `samples` that measured `metrics`."""
        kl, completion_kl = metrics.get("kl"), metrics.get("completion_kl")
        level, factor = self.kl_level, self.kl_factor
        if settings.kl_budget is not None and kl is not None:
            level = kl_control.next_level(level, kl=kl, budget=settings.kl_budget)
        if settings.kl_target is not None and completion_kl is not None:
            factor = kl_control.adapted_factor(
                factor,
                kl=completion_kl,
                target=settings.kl_target,
                horizon=settings.kl_horizon,
                completions=len(samples["ppo"]),
            )
        batches = self.ppo_batches + bool(samples.get("ppo"))
        return replace(self, kl_level=level, kl_factor=factor, ppo_batches=batches)

    def state(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def of_state(cls, state: Any) -> Self:
        """Return it as it was; raises `CorruptData`. What an older checkpoint lacks starts anew."""
        try:
            plain = dict(state)
            of_ppo = RewardStatistics(**_numbers(plain.pop("ppo_rewards", {})))
            of_grpo = RewardStatistics(**_numbers(plain.pop("grpo_rewards", {})))
            thumbs = ClassBalance(**_numbers(plain.pop("thumbs", {})))
            return cls(ppo_rewards=of_ppo, grpo_rewards=of_grpo, thumbs=thumbs, **_numbers(plain))
        except (AttributeError, TypeError, ValueError) as error:
            raise CorruptData(f"checkpoint: scheduler.steering: {error}") from error


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in values.items():
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{name} is {value!r}, not a number")
    return dict(values)
