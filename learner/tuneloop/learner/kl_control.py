"""How hard the policy is held to the reference policy, by how far it has gone. Pure functions."""

HIGHEST_LEVEL = 8
"""Backing off further would change nothing that matters: the rate is at a ninth by then."""
FIRST_PULL = 1.0
"""Weight of the pull to the reference policy when the budget is first exceeded."""


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


def next_level(level: int, *, kl: float, budget: float) -> int:
    """Return how far training is backed off, after a step that measured `kl` nats per token."""
    return min(HIGHEST_LEVEL, level + 1) if kl > budget else max(0, level - 1)


def rate_factor(level: int) -> float:
    """Factor of the learning rate at a level: 1, ½, ⅓ and so on."""
    return 1.0 / (1 + level)


def pull(level: int) -> float:
    """Weight of the pull to the reference policy at a level: 0, then doubling."""
    return FIRST_PULL * 2.0 ** (level - 1) if level else 0.0
