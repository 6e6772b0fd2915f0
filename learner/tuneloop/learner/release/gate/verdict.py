"""Turn measurements into a decision, with its reasons in words. Pure functions."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tuneloop.learner.release.gate.answers import GateMeasurements, Measures
from tuneloop.learner.release.gate.settings import GateSettings
from tuneloop.learner.stats.intervals import standard_deviation
from tuneloop.learner.stats.paired import PairedDifference


@dataclass(frozen=True, slots=True, kw_only=True)
class GateVerdict:
    """The decision about a candidate."""

    passed: bool
    reason: str
    """For people: every bound it broke, or the figures that decided."""
    numbers: Mapping[str, Any]


def judge(examined: GateMeasurements, settings: GateSettings) -> GateVerdict:
    """Judge a candidate: it passes if it breaks no bound."""
    problems = [
        *_of_weights(examined, settings),
        *_of_kl(examined, settings),
        *_of_kl_step(examined, settings),
        *_of_suites(examined, settings),
    ]
    if examined.candidate is not None and examined.stable is not None:
        problems += _of_answers(examined.candidate, examined.stable, settings)
        problems += _of_reward(examined, settings)
    return GateVerdict(
        passed=not problems,
        reason="; ".join(problems) or _summary(examined),
        numbers={**asdict(examined), "settings": settings.model_dump(mode="json")},
    )


def refused(reason: str) -> GateVerdict:
    """Refuse a candidate whose weights are unusable: there is nothing to measure."""
    return GateVerdict(passed=False, reason=reason, numbers={})


def _of_weights(examined: GateMeasurements, settings: GateSettings) -> Iterator[str]:
    # Written so that NaN breaks its bound.
    if not examined.change <= settings.max_change:
        yield (
            f"the change is {examined.change:.3g} of the base weights, "
            f"more than {settings.max_change:g}"
        )


def _of_kl(examined: GateMeasurements, settings: GateSettings) -> Iterator[str]:
    kl = examined.kl
    if kl is None and examined.candidate is not None:
        kl = examined.candidate.kl  # an estimate is better than nothing
    if kl is not None and not kl <= settings.max_kl:
        yield (f"KL to the base model is {kl:.3g} nats per token, more than {settings.max_kl:g}")


def _of_kl_step(examined: GateMeasurements, settings: GateSettings) -> Iterator[str]:
    kl, before = examined.kl, examined.stable_kl
    if kl is None or before is None:
        return
    most = settings.max_kl_step * max(1.0, examined.evidence)
    if not kl - before <= most:
        yield (
            f"KL to the base model rose from {before:.3g}, of version {examined.stable_version}, "
            f"to {kl:.3g} nats per token, by more than {most:.3g}: {settings.max_kl_step:g} for a "
            f"full step of evidence, and it learned from {examined.evidence:.3g} since"
        )


def _of_suites(examined: GateMeasurements, settings: GateSettings) -> Iterator[str]:
    for compared in examined.suites:
        for against, found, margin in (
            (
                f"version {examined.stable_version}, the stable one",
                compared.stable,
                settings.suite_margin,
            ),
            ("version 0", compared.anchor, settings.suite_drift),
        ):
            borne = margin * compared.spread
            if found is not None and not is_borne(found, borne):
                yield (
                    f"{compared.suite} fell by {-found.difference:.3g} from {against} "
                    f"({_interval(found)}, over {found.pairs} items; {borne:.3g} is borne)"
                )


def is_borne(found: PairedDifference, borne: float) -> bool:
    """Return whether a difference may be no loss beyond what is borne; NaN is none."""
    return found.high >= -borne


def _interval(found: PairedDifference) -> str:
    # As many digits as tell it from 100 %.
    digits = math.ceil(-math.log10(1 - found.confidence))
    percent = f"{100 * found.confidence:.{digits}f}".rstrip("0").rstrip(".")
    return f"{percent}% interval {found.low:.3g} to {found.high:.3g}"


def _of_answers(candidate: Measures, stable: Measures, settings: GateSettings) -> Iterator[str]:
    for what, now, before in (
        ("answers", candidate.length, stable.length),
        ("thoughts", candidate.thought_length, stable.thought_length),
    ):
        ratio = now / max(before, 1.0)
        # Where nothing was said before, nothing can be compared.
        if before and not settings.min_length_ratio <= ratio <= settings.max_length_ratio:
            yield (
                f"its {what} are {ratio:.3g} times as long as the stable version's, not "
                f"{settings.min_length_ratio:g} to {settings.max_length_ratio:g}"
            )
    for name, what, most in (
        ("repetition", "repeated 4-grams", settings.max_repetition_rise),
        ("thought_repetition", "repeated 4-grams in thoughts", settings.max_repetition_rise),
        ("empty", "empty answers", settings.max_broken_rise),
        ("leaked", "answers with tokens of the chat template", settings.max_broken_rise),
    ):
        now, before = getattr(candidate, name), getattr(stable, name)
        if not now - before <= most:
            yield f"the share of {what} rose from {before:.2f} to {now:.2f}"


def _of_reward(examined: GateMeasurements, settings: GateSettings) -> Iterator[str]:
    reward = examined.reward
    borne = settings.reward_margin * standard_deviation(examined.rewards.get("stable", ()))
    if reward is not None and not is_borne(reward, borne):
        yield (
            f"mean reward fell by {-reward.difference:.3g} ({_interval(reward)}), "
            f"more than the {borne:.3g} that is borne"
        )


def _summary(examined: GateMeasurements) -> str:
    found = [
        f"{compared.suite} {compared.anchor.difference:+.3g} against version 0 "
        f"({_interval(compared.anchor)})"
        for compared in examined.suites
        if compared.anchor is not None
    ]
    if examined.kl is not None:
        found.append(f"KL to the base model {examined.kl:.3g} nats per token")
    reward = examined.reward
    if examined.same_answers:
        found.append(f"the same answers as version {examined.stable_version}")
    elif reward is None:
        found.append("no scorer has anything to say yet")
    else:
        found.append(f"reward {reward.difference:+.3g} ({_interval(reward)})")
    if examined.candidate is not None and (cut := examined.candidate.cut_thoughts):
        found.append(f"{100 * cut:.0f} % of its answers were cut off in their thought")
    return f"within all bounds; {'; '.join(found)}"
