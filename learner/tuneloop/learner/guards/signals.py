"""What signals predict: the chance of a thumb up, from what users do with answers.

Signals are plenty, cheap and biased. Thumbs on the same answers by the same users tell what they
are worth, and a kind that does not help to foretell thumbs gets no weight, whatever its name.

* A kind is used if there are `LEAST_PAIRS` thumbs, `LEAST_OF_KIND` of answers with it and as many
  of answers without, and the log-likelihood of thumbs, cross-validated over answers, is higher with
  it than without: if the lower end of the one-sided 95 % interval of the gain in nats a thumb is
  above 0. The interval is of users, not of thumbs, where there are `LEAST_CLUSTERS` of them: one
  user's thumbs are alike.
* Kinds that are used are fitted together: P(up | signals) by logistic regression with a standard
  normal prior of each log odds ratio. Missing signals say something too, but only an answer with a
  signal of a used kind is given a chance at all.
* Users do not rate a random sample of answers. A thumb weighs P(rated) / P(rated | signals), a
  stabilized inverse propensity (Robins, Hernán and Brumback 2000,
  https://doi.org/10.1097/00001648-200009000-00011), clipped to `MOST_WEIGHT` and its inverse.
  The propensity is itself a logistic regression, on all answers with signals, rated or not. It
  corrects for what the signals show; that users rate what they hate more than signals tell remains.
* One user's thumbs weigh `RATER_PAIRS` together at most.
"""

import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tuneloop.feedback import SIGNAL_KINDS, SignalKind
from tuneloop.learner.stats.intervals import Estimate, rate_of
from tuneloop.learner.stats.logistic import fit_logistic, predict

Array = npt.NDArray[np.float64]

LEAST_PAIRS = 30
"""Thumbs of users who send signals."""
LEAST_OF_KIND = 10
FOLDS = 5
LEAST_CLUSTERS = 5
ONE_SIDED_95 = 1.645
PRECISION = 1.0
MOST_WEIGHT = 5.0
RATER_PAIRS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Behavior:
    """What one user did with one answer, and the thumb that they gave it."""

    completion_id: str
    user: str
    signals: Mapping[str, float]
    """By kind 1, of an edit the share of the answer that it changed; may be empty."""
    up: bool | None = None
    """None without a thumb."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KindReport:
    """What one kind of signal was found to predict."""

    kind: str
    count: int
    """Answers of users with it."""
    rated: int
    """Those with a thumb."""
    up_with: Estimate | None
    """Share of thumbs that are up; None without any."""
    up_without: Estimate | None
    gain: float | None
    """Nats a thumb; None if it was not tried."""
    gain_low: float | None
    used: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What is known of signals: how they predict thumbs, and a report of each kind."""

    kinds: tuple[str, ...] = ()
    """Those that are used."""
    coefficients: tuple[float, ...] = (0.0,)
    """The intercept, and those of `columns_of` each kind."""
    base: float = 0.5
    """Share of thumbs up among all answers, by the weights."""
    reports: tuple[KindReport, ...] = ()

    def chance(self, signals: Mapping[str, float]) -> float | None:
        """Return the chance of a thumb up; None if nothing is known of these signals."""
        if not any(kind in signals for kind in self.kinds):
            return None
        row = np.array([columns_of(self.kinds, signals)])
        return float(predict(np.array(self.coefficients), row)[0])

    def says(self, chance: float) -> float:
        """Return how much a chance tells of an answer, 0 to 1: |2q − 1|.

        q is the chance if half of all thumbs were up. Where nine in ten are, a chance of 0.9 says
        nothing.
        """
        odds = chance / (1 - chance) * (1 - self.base) / self.base
        return abs(2 * odds / (1 + odds) - 1)


def calibrate(behaviors: Sequence[Behavior]) -> Calibration:
    """Return what signals predict, from what users did and said.

    There should be answers without signals among them, of users who send any.
    """
    rated = [behavior for behavior in behaviors if behavior.up is not None]
    if not rated:
        return Calibration(reports=tuple(_untried(kind, behaviors) for kind in SIGNAL_KINDS))
    weights = _weights(behaviors, rated)
    ups = np.array([float(bool(behavior.up)) for behavior in rated])
    reports = tuple(_report(kind, behaviors, rated, ups, weights) for kind in SIGNAL_KINDS)
    kinds = tuple(report.kind for report in reports if report.used)
    fitted = fit_logistic(_matrix(kinds, rated), ups, weights, precision=PRECISION)
    least = 0.5 / (len(rated) + 1)
    base = min(1 - least, max(least, float(weights @ ups / weights.sum())))
    return Calibration(kinds=kinds, coefficients=tuple(fitted), base=base, reports=reports)


def columns_of(kinds: Sequence[str], signals: Mapping[str, float]) -> list[float]:
    """Return the features of signals: whether there is each kind, and how much an edit changed."""
    row = [float(kind in signals) for kind in kinds]
    if SignalKind.EDITED in kinds:
        row.append(signals.get(SignalKind.EDITED, 0.0))
    return row


def _matrix(kinds: Sequence[str], behaviors: Sequence[Behavior]) -> Array:
    rows = [columns_of(kinds, behavior.signals) for behavior in behaviors]
    return np.array(rows, dtype=np.float64).reshape(len(behaviors), -1)


def _weights(behaviors: Sequence[Behavior], rated: Sequence[Behavior]) -> Array:
    """Return what each thumb weighs, by its propensity and by how many its user gave."""
    kinds = tuple(SIGNAL_KINDS)
    was_rated = np.array([float(behavior.up is not None) for behavior in behaviors])
    model = fit_logistic(
        _matrix(kinds, behaviors), was_rated, np.ones(len(behaviors)), precision=PRECISION
    )
    propensities = predict(model, _matrix(kinds, rated))
    weights = np.clip(was_rated.mean() / propensities, 1 / MOST_WEIGHT, MOST_WEIGHT)
    given = Counter(behavior.user for behavior in rated)
    capped = [min(1.0, RATER_PAIRS / given[behavior.user]) for behavior in rated]
    return np.asarray(weights * np.array(capped), dtype=np.float64)


def _report(
    kind: str,
    behaviors: Sequence[Behavior],
    rated: Sequence[Behavior],
    ups: Array,
    weights: Array,
) -> KindReport:
    plain = _untried(kind, behaviors)
    if plain.reason:
        return plain
    gains = _gains(kind, rated, ups, weights)
    gain, low = _mean_and_low(gains, weights, rated)
    used = low > 0
    return KindReport(
        kind=kind,
        count=plain.count,
        rated=plain.rated,
        up_with=plain.up_with,
        up_without=plain.up_without,
        gain=gain,
        gain_low=low,
        used=used,
        reason="foretells thumbs" if used else "does not foretell thumbs well enough",
    )


def _untried(kind: str, behaviors: Sequence[Behavior]) -> KindReport:
    with_it = [behavior for behavior in behaviors if kind in behavior.signals]
    votes = [behavior.up for behavior in with_it if behavior.up is not None]
    others = [b.up for b in behaviors if b.up is not None and kind not in b.signals]
    return KindReport(
        kind=kind,
        count=len(with_it),
        rated=len(votes),
        up_with=rate_of(sum(votes), len(votes)) if votes else None,
        up_without=rate_of(sum(others), len(others)) if others else None,
        gain=None,
        gain_low=None,
        used=False,
        reason=_too_few(len(votes), len(others)),
    )


def _too_few(with_it: int, without: int) -> str:
    """Return which thumbs are too few to try a kind; empty if there are enough."""
    if with_it + without < LEAST_PAIRS:
        return f"{with_it + without} of {LEAST_PAIRS} thumbs by users who send signals"
    if with_it < LEAST_OF_KIND:
        return f"{with_it} of {LEAST_OF_KIND} thumbs on answers with it"
    if without < LEAST_OF_KIND:
        return f"{without} of {LEAST_OF_KIND} thumbs on answers without it"
    return ""


def _gains(kind: str, rated: Sequence[Behavior], ups: Array, weights: Array) -> Array:
    """Return by how much the kind raises the log-likelihood of each thumb that it did not see."""
    folds = np.array([zlib.crc32(behavior.completion_id.encode()) % FOLDS for behavior in rated])
    features, nothing = _matrix((kind,), rated), np.zeros((len(rated), 0))
    gains = np.zeros(len(rated))
    for fold in range(FOLDS):
        seen, held = folds != fold, folds == fold
        if not held.any():
            continue

        def log_likelihood(columns: Array, seen: Array = seen, held: Array = held) -> Array:
            model = fit_logistic(columns[seen], ups[seen], weights[seen], precision=PRECISION)
            chances = predict(model, columns[held])
            return np.asarray(np.log(np.where(ups[held] > 0, chances, 1 - chances)))

        gains[held] = log_likelihood(features) - log_likelihood(nothing)
    return gains


def _mean_and_low(gains: Array, weights: Array, rated: Sequence[Behavior]) -> tuple[float, float]:
    """Return the weighted mean and the lower end of its one-sided 95 % interval."""
    mean = float(weights @ gains / weights.sum())
    users = len({behavior.user for behavior in rated})
    clusters: defaultdict[str, float] = defaultdict(float)
    for behavior, deviation in zip(rated, weights * (gains - mean), strict=True):
        cluster = behavior.user if users >= LEAST_CLUSTERS else behavior.completion_id
        clusters[cluster] += float(deviation)
    count = len(clusters)
    squares = sum(deviation**2 for deviation in clusters.values()) * count / max(1, count - 1)
    return mean, mean - ONE_SIDED_95 * float(np.sqrt(squares) / weights.sum())
