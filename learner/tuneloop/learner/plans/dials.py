"""What the trainer turns while it learns; a plan reads it beside the settings."""

from dataclasses import dataclass

from tuneloop.learner.rewards import RewardStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Dials:
    """Where everything stands that adapts; as it is made, nothing does."""

    kl_factor: float = 1.0
    """Factor of `kl_coef`, adapted to `kl_target`."""
    kl_pull: float = 0.0
    """Weight of an extra loss that pulls to the reference policy, past the KL budget."""
    critic_only: bool = False
    """Whether PPO fits the value head only."""
    ppo_rewards: RewardStatistics | None = None
    """What PPO's rewards are standardised by, if they are."""
    grpo_rewards: RewardStatistics | None = None
    """Baseline and scale of completions without siblings."""
    desirable_share: float = 0.5
    """Share of thumbs that are up, lately."""


AT_REST = Dials()
"""Nothing adapts."""
