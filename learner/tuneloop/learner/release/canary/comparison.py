"""What a canary's traffic says: each figure of both arms, and the verdict, if there is one.

Every user counts once, with the first judgement that came: several votes of one user are not
independent, and counting each would overstate the evidence. Requests without a user are routed one
by one, so each of them counts. Higher is better for every figure: errors count as a difference of
success rates, and so does a metric of which less is better.
"""

import bisect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

from tuneloop.learner.ledger.reports.canary_traffic import JudgedAnswer, MeasuredTraffic
from tuneloop.learner.release.canary.error_rates import ErrorTally
from tuneloop.learner.release.canary.settings import CanarySettings
from tuneloop.learner.release.canary.state import CanaryVerdict
from tuneloop.learner.stats.sequential import Observation, differences, lower_bound, upper_bound
from tuneloop.policies import CanaryRoute

Figure: TypeAlias = Literal["thumbs", "reward", "errors", "metric"]

ALWAYS = 3
"""Figures that are always compared; a metric is one more."""
STRAYS = 3
"""Requests on the arm that is not the user's own, after which a hash counts as unnamed users."""
FEWEST_EARLIER = 20
"""Rewards, or numbers of a metric, to compare with.

If there are fewer earlier ones, the first of stable's are used.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmComparison:
    """One figure of both arms.

    Shares of thumbs up, mean ranks of rewards, rates of errors; of a metric the share that is true,
    or mean ranks of numbers, of which 1 is the best.
    """

    canary: int
    """Users; for errors requests."""
    stable: int
    canary_mean: float | None
    stable_mean: float | None
    low: float
    """The canary is better than stable by more than this, at level alpha …"""
    high: float
    """… and by less than this, at alpha over the figures, of which any may roll it back."""


def first_of_each(route: CanaryRoute, judged: Sequence[JudgedAnswer]) -> list[JudgedAnswer]:
    """Return the first judgement of every user who was answered by the arm of their route."""
    canary = route.weights.policy_version
    strays: defaultdict[str, set[str]] = defaultdict(set)
    for answer in judged:
        if route.takes(answer.user_hash) != (answer.policy_version == canary):
            strays[answer.user_hash].add(answer.group_id)
    unnamed = {user for user, groups in strays.items() if len(groups) >= STRAYS}
    found: dict[str, JudgedAnswer] = {}
    for answer in judged:
        key = answer.group_id if answer.user_hash in unnamed else answer.user_hash
        # Users who asked for a version, or got stable while the canary was down, were not
        # assigned to their arm, and would bias the comparison.
        if route.takes(key) == (answer.policy_version == canary):
            found.setdefault(key, answer)
    return list(found.values())


def compare(
    route: CanaryRoute,
    *,
    thumbs: Sequence[JudgedAnswer],
    rewards: Sequence[JudgedAnswer],
    earlier_rewards: Sequence[float],
    errors: ErrorTally,
    alpha: float,
    metric: MeasuredTraffic | None = None,
    higher_is_better: bool = True,
) -> dict[Figure, ArmComparison]:
    """Return every figure that is known. `higher_is_better` is about the metric."""
    canary = route.weights.policy_version
    votes = first_of_each(route, thumbs)
    level = Level(alpha=alpha, figures=ALWAYS + (metric is not None))
    found: dict[Figure, ArmComparison] = {
        "thumbs": _of_users(votes, [vote.value for vote in votes], canary, level),
        "reward": _of_ranks(first_of_each(route, rewards), earlier_rewards, canary, level),
        "errors": _of_requests(errors, level),
    }
    if metric is not None:
        users = first_of_each(route, metric.answers)
        found["metric"] = _of_metric(users, metric, canary, level, higher_is_better)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """How often the comparison may be wrong."""

    alpha: float
    figures: int
    """How many are compared, each of which may roll back."""


def _of_metric(
    users: Sequence[JudgedAnswer],
    metric: MeasuredTraffic,
    canary: int,
    level: Level,
    higher_is_better: bool,
) -> ArmComparison:
    """Compare booleans as they are, numbers by their rank: they have no bounds of their own."""
    if not metric.is_boolean:
        sign = 1.0 if higher_is_better else -1.0
        signed = [replace(user, value=sign * user.value) for user in users]
        return _of_ranks(signed, [sign * value for value in metric.earlier], canary, level)
    if higher_is_better:
        return _of_users(users, [user.value for user in users], canary, level)
    found = _of_users(users, [1.0 - user.value for user in users], canary, level)
    return replace(
        found,
        canary_mean=None if found.canary_mean is None else 1.0 - found.canary_mean,
        stable_mean=None if found.stable_mean is None else 1.0 - found.stable_mean,
    )


def judge(
    figures: dict[Figure, ArmComparison], settings: CanarySettings, numbers: dict[str, Any]
) -> CanaryVerdict | None:
    """Roll back if any figure shows it to be worse; promote if it is shown to be no worse."""
    known = {
        name: c for name, c in figures.items() if min(c.canary, c.stable) >= settings.min_events
    }
    worse = [name for name, c in known.items() if c.high <= 0]
    if worse:
        reason = ", ".join(
            f"{name} {shown(figures[name].canary_mean)} against {shown(figures[name].stable_mean)}"
            for name in worse
        )
        return CanaryVerdict(
            outcome="roll_back", reason=f"worse than stable: {reason}", numbers=numbers
        )
    decisive = known.get(settings.decide_by)
    if decisive is not None and decisive.low >= -settings.margin:
        return CanaryVerdict(
            outcome="promote",
            reason=f"{settings.decide_by} {shown(decisive.canary_mean)} against "
            f"{shown(decisive.stable_mean)}: worse by less than {settings.margin:g} at most",
            numbers=numbers,
        )
    return None


def as_numbers(figures: dict[Figure, ArmComparison]) -> dict[str, Any]:
    """Return the figures as a decision records them."""
    return {name: asdict(comparison) for name, comparison in figures.items()}


def shown(mean: float | None) -> str:
    """Format a mean for people."""
    return "unknown" if mean is None else f"{mean:.3f}"


def _of_users(
    users: Sequence[JudgedAnswer], values: Sequence[float], canary: int, level: Level
) -> ArmComparison:
    arms = [user.policy_version == canary for user in users]
    observations = [Observation(canary=a, value=v) for a, v in zip(arms, values, strict=True)]
    blocks = differences(observations)
    mine = [o.value for o in observations if o.canary]
    others = [o.value for o in observations if not o.canary]
    return ArmComparison(
        canary=len(mine),
        stable=len(others),
        canary_mean=sum(mine) / len(mine) if mine else None,
        stable_mean=sum(others) / len(others) if others else None,
        low=lower_bound(blocks, level.alpha),
        high=upper_bound(blocks, level.alpha / level.figures),
    )


def _of_ranks(
    users: Sequence[JudgedAnswer], earlier: Sequence[float], canary: int, level: Level
) -> ArmComparison:
    """Compare values by their rank among stable's earlier ones, from 0 to 1 for every scorer."""
    scale, later = sorted(earlier), list(users)
    if len(scale) < FEWEST_EARLIER:
        of_stable = [user for user in users if user.policy_version != canary]
        first = of_stable[: FEWEST_EARLIER - len(scale)]
        taken = {user.group_id for user in first}
        scale = sorted([*scale, *(user.value for user in first)])
        later = [user for user in users if user.group_id not in taken]
    if len(scale) < FEWEST_EARLIER:
        later = []
    ranks = [rank(user.value, scale) for user in later]
    return _of_users(later, ranks, canary, level)


def rank(value: float, scale: Sequence[float]) -> float:
    """Return the share of a sorted scale below a value; equal values count half."""
    return (bisect.bisect_left(scale, value) + bisect.bisect_right(scale, value)) / (2 * len(scale))


def _of_requests(errors: ErrorTally, level: Level) -> ArmComparison:
    def rate(arm: str) -> float | None:
        requests, failures = errors.total[arm]
        return failures / requests if requests else None

    return ArmComparison(
        canary=errors.total["canary"][0],
        stable=errors.total["stable"][0],
        canary_mean=rate("canary"),
        stable_mean=rate("stable"),
        low=lower_bound(errors.blocks, level.alpha),
        high=upper_bound(errors.blocks, level.alpha / level.figures),
    )
