"""What adapts from step to step: running rewards, KL control, class balance; and its state."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from tuneloop.errors import CorruptData
from tuneloop.learner.samples import (
    LabelledText,
    Objective,
    PolicySample,
    ScoredGroup,
    ScoredSample,
    ThumbSample,
)
from tuneloop.learner.trainer.rewards import RewardStatistics, priced_reward
from tuneloop.learner.trainer.settings import TrainerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class StepControls:
    """The current values of everything that adapts; the defaults adapt nothing."""

    kl_factor: float = 1.0
    """Factor of `kl_coef`, adapted to `kl_target`."""
    kl_pull: float = 0.0
    """Weight of an extra loss that pulls to the reference policy; grows as the KL budget is spent.
    """
    kl_above: bool = False
    """Whether the recent KL to the reference policy is above its budget."""
    critic_only: bool = False
    """Whether PPO fits the value head only."""
    ppo_rewards: RewardStatistics | None = None
    """What PPO's rewards are standardised by, if they are."""
    grpo_rewards: RewardStatistics | None = None
    """Baseline and scale of completions without siblings."""
    desirable_share: float = 0.5
    """Recent share of thumbs that are up."""
    expected_share: float = 0.5
    """The same before there is much to go by, see `ClassBalance.expected_share`."""

    def for_trusted(self, share: float) -> Self:
        """Return the controls of a batch of which this share is trusted.

        Its loss is divided by that share, so its pull, whose tokens all count, is multiplied by it.
        """
        return replace(self, kl_pull=self.kl_pull * share)


AT_REST = StepControls()
"""Nothing adapts."""
REMEMBERED = 0.25
"""What the KL of earlier batches weighs once another full step has come: little, as a taste that is
found doubles it with each step. That of a single thumb says nothing."""
PULL = 0.01
"""Weight of the pull to the reference policy where the KL is at its budget.

What thumbs agree on is a fourth of their noise, the pull is hardly noisy, and Adam divides both by
the noise: from 0.03 to 0.05 it is as strong as what thumbs agree on.
"""
STRONGEST_PULL = 0.025
"""A stronger one, far above the budget, filled Adam's momentum, which went on for ten steps: the
policy fell to a fifth of its budget, and what it had learned was gone."""
BALANCE_DECAY = 0.97
"""Weight of a thumb in the class balance once another has come. It follows what people say within
two full steps: where it lags, the few answers that a learned taste still dislikes count too little,
and the policy gets half of the signal that would hold the taste."""
FORMER = ("kl_level", "kl_above", "kl_evidence")
"""What checkpoints of earlier versions have in addition."""


def adapted_factor(
    factor: float, *, kl: float, target: float, horizon: int, completions: int
) -> float:
    """Return the next factor of `kl_coef`, after a batch of `completions` with KL divergence `kl`.

    Ziegler et al. 2019, https://arxiv.org/abs/1909.08593: proportional control of the
    logarithm, by at most a fifth over `horizon` completions. `kl` and `target` in nats per
    completion; `kl` is an estimate and may be negative.
    """
    error = max(-0.2, min(0.2, kl / target - 1.0))
    return factor * (1.0 + error * min(1.0, completions / horizon))


def rate_factor(spent: float) -> float:
    """Factor of the learning rate where the KL is `spent` times its budget: ½ at the budget."""
    return 1.0 / (1.0 + spent**2)


def pull(spent: float) -> float:
    """Weight of the pull to the reference policy where the KL is `spent` times its budget.

    Grows as the square, as the penalty of Schulman's trust-region code does past its limit
    (https://github.com/joschu/modular_rl), but never to more than what thumbs agree on: above the
    budget it is the rate that holds. Without a threshold there is nothing to swing around.
    """
    return min(STRONGEST_PULL, PULL * spent**2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassBalance:
    """Weights of the thumbs seen, the newest weighing most."""

    up: float = 0.0
    """Each thumb's weight, times the decay for each unit of weight that came later."""
    down: float = 0.0
    supposed: float = 1.0
    """Of the thumb of each kind that is supposed to have come before all others, what is left."""

    def updated(self, thumbs: Sequence[ThumbSample | LabelledText], decay: float) -> Self:
        """Return the balance with a batch of thumbs, whose order does not matter."""
        up = math.fsum(thumb.weight * thumb.trust for thumb in thumbs if thumb.desirable)
        down = math.fsum(thumb.weight * thumb.trust for thumb in thumbs if not thumb.desirable)
        faded: float = decay ** (up + down)
        return type(self)(
            up=self.up * faded + up,
            down=self.down * faded + down,
            supposed=self.supposed * faded,
        )

    @property
    def desirable_share(self) -> float:
        """Share of the weight that is up; one half as long as there is none."""
        total = self.up + self.down
        return self.up / total if total > 0 else 0.5

    @property
    def expected_share(self) -> float:
        """Share of the weight that is up, as if one thumb of each kind had come before.

        A first batch without a thumb up does not say yet that there are none.
        """
        return (self.up + self.supposed) / (self.up + self.down + 2 * self.supposed)

    @classmethod
    def of_state(cls, state: Any) -> Self:
        """Return a balance as `asdict` gave it; raises `CorruptData`."""
        try:
            return cls(**_numbers(state))
        except (AttributeError, TypeError, ValueError) as error:
            raise CorruptData(f"checkpoint: scheduler.thumbs: {error}") from error


Samples = Mapping[str, Sequence[PolicySample]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveState:
    """The state before a step; a skipped step leaves it unchanged."""

    ppo_rewards: RewardStatistics = field(default_factory=RewardStatistics)
    grpo_rewards: RewardStatistics = field(default_factory=RewardStatistics)
    thumbs: ClassBalance = field(default_factory=ClassBalance)
    kl_factor: float = 1.0
    """See `StepControls.kl_factor`."""
    kl_sum: float = 0.0
    """KL of recent batches, each times its evidence and its tokens."""
    kl_tokens: float = 0.0
    """Their tokens times their evidence: short answers must not weigh more when they come alone."""
    ppo_batches: int = 0
    """Batches PPO has learned from."""
    anchors_used: int = 0
    """Anchors that steps have carried."""

    def with_rewards(self, samples: Samples, settings: TrainerSettings) -> Self:
        """Return the state with the rewards of a batch in it, which it then standardises."""
        given = [s for s in samples.get(Objective.PPO, ()) if isinstance(s, ScoredSample)]
        groups = [g for g in samples.get(Objective.GRPO, ()) if isinstance(g, ScoredGroup)]
        priced = [priced_reward(s, settings) for group in groups for s in group.samples]
        thumbs = [s for s in samples.get(Objective.KTO, ()) if isinstance(s, ThumbSample)]
        decay = settings.reward_decay
        return replace(
            self,
            ppo_rewards=self.ppo_rewards.updated((s.reward for s in given), decay),
            grpo_rewards=self.grpo_rewards.updated(
                (reward for reward in priced if not math.isnan(reward)), decay
            ),
            thumbs=self.thumbs.updated(thumbs, BALANCE_DECAY),
        )

    def controls(self, settings: TrainerSettings) -> StepControls:
        """Return the controls for the plans of this step."""
        spent = self.spent(settings)
        return StepControls(
            kl_factor=self.kl_factor,
            kl_pull=pull(spent),
            kl_above=spent > 1.0,
            critic_only=self.ppo_batches < settings.critic_warmup_steps,
            ppo_rewards=self.ppo_rewards if settings.normalize_rewards else None,
            grpo_rewards=self.grpo_rewards,
            desirable_share=self.thumbs.desirable_share,
            expected_share=self.thumbs.expected_share,
        )

    def spent(self, settings: TrainerSettings) -> float:
        """Return the recent KL as a part of its budget; 0 without a budget."""
        if settings.kl_budget is None or self.kl_tokens == 0:
            return 0.0
        return max(0.0, self.kl_sum / self.kl_tokens) / settings.kl_budget

    def after(
        self,
        metrics: Mapping[str, float],
        samples: Samples,
        settings: TrainerSettings,
        anchors: int = 0,
    ) -> Self:
        """Return the state after a step on `samples` that measured `metrics`."""
        kl, completion_kl = metrics.get("kl"), metrics.get("completion_kl")
        factor, kl_sum, kl_tokens = self.kl_factor, self.kl_sum, self.kl_tokens
        if settings.kl_budget is not None and kl is not None:
            evidence = metrics.get("evidence", 1.0)
            kept = REMEMBERED**evidence
            tokens = evidence * metrics.get("tokens", 1.0)
            kl_sum, kl_tokens = kept * kl_sum + tokens * kl, kept * kl_tokens + tokens
        if settings.kl_target is not None and completion_kl is not None:
            factor = adapted_factor(
                factor,
                kl=completion_kl,
                target=settings.kl_target,
                horizon=settings.kl_horizon,
                completions=len(samples[Objective.PPO]),
            )
        batches = self.ppo_batches + bool(samples.get(Objective.PPO))
        return replace(
            self,
            kl_sum=kl_sum,
            kl_tokens=kl_tokens,
            kl_factor=factor,
            ppo_batches=batches,
            anchors_used=self.anchors_used + anchors,
        )

    def state(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def of_state(cls, state: Any) -> Self:
        """Return a saved state; raises `CorruptData`. What an older one lacks gets its default."""
        try:
            plain = {name: value for name, value in dict(state).items() if name not in FORMER}
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
