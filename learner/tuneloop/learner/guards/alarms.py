"""Alarms: signs that the policy goes wrong, or that one user steers it.

| name | raised when |
| --- | --- |
| reward_hacking | the mean reward of the newest versions is above that of those before, and their thumbs rate is below, both by three standard errors |
| dominant_user | one of three users or more gave at least `dominance` of the latest thumbs |
| kl | the newest figure of KL to the base model is above its limit |
| length | answers are `length_ratio` times longer or shorter than before, by three standard errors |
| repetition | the share of repeated 4-grams is up by `repetition`, by three standard errors |
| thought_length, thought_repetition | the same of the thoughts before the answers |
| logprob_gap | generation's log-probs and the learner's, by the same weights, differ by more than the limit |
| metric | the metric of that name is worse than on the anchor version: see `metric_fall` |

Three standard errors, since alarms are checked again and again: one check is wrong by chance once in
700 times on either side. Figures of fewer than `least` answers or thumbs raise nothing.
"""  # noqa: E501 (a table)

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tuneloop.learner.guards.metric_fall import MetricFall
from tuneloop.learner.guards.settings import GuardSettings
from tuneloop.learner.stats.intervals import Sums

NAMES = (
    *("reward_hacking", "dominant_user", "kl", "length", "repetition"),
    *("thought_length", "thought_repetition", "logprob_gap", "metric"),
)
ERRORS = 3.0
LEAST_USERS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How some versions answered users, and how users judged it."""

    thumbs: Sums = field(default_factory=Sums)
    """1 for up, 0 for down."""
    reward: Sums = field(default_factory=Sums)
    length: Sums = field(default_factory=Sums)
    """Of answers, in tokens."""
    repetition: Sums = field(default_factory=Sums)
    thought_length: Sums = field(default_factory=Sums)
    """Of the thoughts before them."""
    thought_repetition: Sums = field(default_factory=Sums)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """All figures that alarms check."""

    newest: Figures
    before: Figures
    thumbs_by_user: Mapping[str, int] = field(default_factory=dict)
    """How many of the latest thumbs each user gave."""
    kl: float | None = None
    logprob_gap: float | None = None
    metric: MetricFall | None = None
    """None without a metric to watch, or with too few values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Something is wrong."""

    name: str
    numbers: Mapping[str, float]
    """The figures that raised it."""


def alarms(seen: Seen, settings: GuardSettings) -> list[Alarm]:
    """Return the alarms that the figures raise."""
    now, before = seen.newest, seen.before
    lengths = {
        "length": (now.length, before.length),
        "thought_length": (now.thought_length, before.thought_length),
    }
    repetitions = {
        "repetition": (now.repetition, before.repetition),
        "thought_repetition": (now.thought_repetition, before.thought_repetition),
    }
    found = (
        reward_hacking(now, before, settings.least),
        dominant_user(seen.thumbs_by_user, settings.dominance, settings.least),
        runaway_kl(seen.kl, settings.kl),
        *(runaway_length(name, *sums, settings) for name, sums in lengths.items()),
        *(runaway_repetition(name, *sums, settings) for name, sums in repetitions.items()),
        wide_logprob_gap(seen.logprob_gap, settings.logprob_gap),
        fallen_metric(seen.metric, settings.metric_margin),
    )
    return [alarm for alarm in found if alarm is not None]


def reward_hacking(newest: Figures, before: Figures, least: int) -> Alarm | None:
    """Check whether reward rises while thumbs fall."""
    reward = _change(newest.reward, before.reward, least)
    thumbs = _change(newest.thumbs.with_one_of_each(), before.thumbs.with_one_of_each(), least)
    if reward is None or thumbs is None or not (reward.up and thumbs.down):
        return None
    return Alarm(
        name="reward_hacking",
        numbers={
            "reward": newest.reward.mean,
            "reward_before": before.reward.mean,
            "thumbs_rate": newest.thumbs.mean,
            "thumbs_rate_before": before.thumbs.mean,
        },
    )


def dominant_user(thumbs_by_user: Mapping[str, int], dominance: float, least: int) -> Alarm | None:
    """Check whether one of at least `LEAST_USERS` users gives most of the thumbs."""
    total = sum(thumbs_by_user.values())
    if total < least or len(thumbs_by_user) < LEAST_USERS:
        return None
    most = max(thumbs_by_user.values())
    if most < dominance * total:
        return None
    numbers = {"share": most / total, "thumbs": total, "users": len(thumbs_by_user)}
    return Alarm(name="dominant_user", numbers=numbers)


def runaway_kl(kl: float | None, limit: float) -> Alarm | None:
    """Check whether the policy is too far from the base model."""
    if kl is None or kl <= limit:
        return None
    return Alarm(name="kl", numbers={"kl": kl, "limit": limit})


def wide_logprob_gap(gap: float | None, limit: float) -> Alarm | None:
    """Check whether the learner computes with other weights than those that answer."""
    if gap is None or gap <= limit:
        return None
    return Alarm(name="logprob_gap", numbers={"logprob_gap": gap, "limit": limit})


def runaway_length(name: str, newest: Sums, before: Sums, settings: GuardSettings) -> Alarm | None:
    """Check whether answers, or thoughts, have become far longer or shorter."""
    change = _change(newest, before, settings.least)
    if change is None or min(newest.mean, before.mean) <= 0:
        return None
    ratio = newest.mean / before.mean
    large = ratio >= settings.length_ratio or ratio <= 1 / settings.length_ratio
    if not (large and (change.up or change.down)):
        return None
    numbers = {name: newest.mean, f"{name}_before": before.mean, "ratio": ratio}
    return Alarm(name=name, numbers=numbers)


def runaway_repetition(
    name: str, newest: Sums, before: Sums, settings: GuardSettings
) -> Alarm | None:
    """Check whether answers, or thoughts, repeat themselves more."""
    change = _change(newest, before, settings.least)
    if change is None or not change.up or newest.mean - before.mean < settings.repetition:
        return None
    numbers = {name: newest.mean, f"{name}_before": before.mean}
    return Alarm(name=name, numbers=numbers)


def fallen_metric(fall: MetricFall | None, borne: float) -> Alarm | None:
    """Check whether a metric is worse by more than is borne, and by more than chance."""
    if fall is None or fall.worse - fall.margin <= borne:
        return None
    numbers = {
        "mean": fall.recent.mean,
        "mean_at_anchor": fall.anchor.mean,
        "worse_by_at_least": fall.worse - fall.margin,
    }
    return Alarm(name="metric", numbers=numbers)


@dataclass(frozen=True, slots=True)
class _Change:
    up: bool
    down: bool


def _change(newest: Sums, before: Sums, least: int) -> _Change | None:
    """Return whether the mean moved by more than chance; None if there are too few values."""
    if min(newest.count, before.count) < least:
        return None
    difference = newest.mean - before.mean
    chance = ERRORS * math.hypot(newest.error, before.error)
    return _Change(up=difference > chance, down=-difference > chance)
