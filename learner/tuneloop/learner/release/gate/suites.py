"""Suites of fixed items: what a version scored on each, and how that compares. No sampling.

A candidate is compared item by item with two versions. The stable version shows what this step did;
version 0, the anchor, does not move, so that many losses too small to see cannot add up. The best
version so far would be no anchor: it is the luckiest of all that were scored, and the more versions
there are, the more of those that are as good would fall short of it.

Every comparison with the anchor is a test on the same items, and a lineage that was unlucky on them
once stays so. So its chance of error is spent: all candidates together, however many there will be,
have the chance that one candidate has against the stable version.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from tuneloop.files import write_file
from tuneloop.learner.release.gate.settings import GateSettings
from tuneloop.learner.stats.intervals import standard_deviation
from tuneloop.learner.stats.paired import PairedDifference, paired_difference, spent_alpha

SuiteScores: TypeAlias = Mapping[str, Mapping[str, float]]
"""The value of each item by suite and item; higher is better."""

KEPT = 256
"""The number of newest versions whose scores stay on disk, beside version 0."""
FORMAT = 2
"""Of a version's file; the files before had the suites' values alone."""
ITEMS_IN_DECISION = 512
"""The most items whose values a decision keeps; the versions' files have them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteComparison:
    """A candidate's values on one suite, next to those of the stable version and of version 0."""

    suite: str
    items: int
    mean: float
    """The candidate's, over the items that version 0 has a value for."""
    spread: float
    """Standard deviation of version 0's values between items; margins are shares of it."""
    stable: PairedDifference | None
    """Candidate minus stable; None if they share fewer than two items."""
    anchor: PairedDifference | None
    """Candidate minus version 0."""


def compare_suites(
    candidate: SuiteScores,
    stable: SuiteScores,
    anchor: SuiteScores,
    *,
    number: int,
    settings: GateSettings,
) -> list[SuiteComparison]:
    """Compare a candidate, the `number`-th (1, 2, …) that is examined, on every suite it has.

    The suites share the chance of error (Bonferroni): an equal candidate fails against the stable
    version with the chance (1 − confidence) / 2 in all.
    """
    alpha = (1 - settings.confidence) / max(1, len(candidate))
    return [
        _compare(
            suite,
            values,
            stable.get(suite, {}),
            anchor.get(suite, {}),
            stable_confidence=1 - alpha,
            anchor_confidence=1 - spent_alpha(alpha, number),
        )
        for suite, values in candidate.items()
    ]


def _compare(
    suite: str,
    candidate: Mapping[str, float],
    stable: Mapping[str, float],
    anchor: Mapping[str, float],
    *,
    stable_confidence: float,
    anchor_confidence: float,
) -> SuiteComparison:
    anchored = [anchor[item] for item in candidate if item in anchor]
    return SuiteComparison(
        suite=suite,
        items=len(candidate),
        mean=_mean([candidate[item] for item in candidate if item in anchor]),
        spread=standard_deviation(anchored),
        stable=_paired(candidate, stable, stable_confidence),
        anchor=_paired(candidate, anchor, anchor_confidence),
    )


def _paired(
    candidate: Mapping[str, float], other: Mapping[str, float], confidence: float
) -> PairedDifference | None:
    shared = [item for item in candidate if item in other]
    return paired_difference(
        [candidate[item] for item in shared], [other[item] for item in shared], confidence
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def items_of_decision(
    candidate: SuiteScores, stable: SuiteScores, anchor: SuiteScores
) -> dict[str, Any]:
    """Return the values of each item as a decision keeps them, columns by suite, in JSON types.

    Of more than `ITEMS_IN_DECISION` those are kept that changed most from version 0.
    """
    room = ITEMS_IN_DECISION // max(1, len(candidate))
    kept = {}
    for suite, values in candidate.items():
        before, base = stable.get(suite, {}), anchor.get(suite, {})
        change = {item: abs(value - base.get(item, value)) for item, value in values.items()}
        most_changed = sorted(change, key=change.__getitem__, reverse=True)[:room]
        items = list(values) if len(values) <= room else most_changed
        kept[suite] = {
            "item": items,
            "candidate": [_rounded(values.get(item)) for item in items],
            "stable": [_rounded(before.get(item)) for item in items],
            "anchor": [_rounded(base.get(item)) for item in items],
            "left_out": len(values) - len(items),
        }
    return kept


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


class KeptScores:
    """The suites' values of the newest versions and of version 0, and their KL, on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, version: int, scores: SuiteScores, kl: float | None = None) -> None:
        """Save what a version scored, and its KL to version 0 in nats per token."""
        self._folder.mkdir(parents=True, exist_ok=True)
        document = {"format": FORMAT, "suites": scores, "kl": kl}
        write_file(self._path(version), json.dumps(document).encode())
        versions = sorted(self._folder.glob("*.json"))
        for old in [path for path in versions if path != self._path(0)][:-KEPT]:
            old.unlink()

    def of_version(self, version: int) -> SuiteScores | None:
        """Return what a version scored; None if that is not known."""
        scores: SuiteScores | None = self._document(version).get("suites")
        return scores

    def kl_of_version(self, version: int) -> float | None:
        """Return a version's KL to version 0; None if it was not measured."""
        kl: float | None = 0.0 if version == 0 else self._document(version).get("kl")
        return kl

    def _document(self, version: int) -> Mapping[str, Any]:
        """Return a version's file; empty if there is none."""
        try:
            document: Mapping[str, Any] = json.loads(self._path(version).read_text())
        except FileNotFoundError:
            return {}
        # The name of a suite may be anything, but its values are no number.
        return document if document.get("format") == FORMAT else {"suites": document}

    def _path(self, version: int) -> Path:
        return self._folder / f"{version:08d}.json"
