"""How far a metric has fallen, from an anchor version to those that serve now.

The newest versions of the stable line are taken together until they have `RECENT` values, so that
a version that just came is not judged by its first users. They are compared with the anchor over
all the time there is: see `stats.two_samples` for why that may be done at every look.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuneloop.learner.stats.intervals import Sums
from tuneloop.learner.stats.two_samples import difference_margin

ALPHA = 0.05
"""How likely a metric that did not change is reported, over all looks of one set of versions."""
RECENT = 256
"""Values of the newest versions, weighed by user, that are compared with the anchor's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSums:
    """A metric by version, its values weighed by user."""

    by_version: Mapping[int, Sums]
    is_boolean: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricFall:
    """How far the metric is from where it was; each mean is of values weighed by user."""

    anchor: Sums
    recent: Sums
    versions: int
    """How many versions `recent` is of."""
    worse: float
    """How much worse the recent mean is than the anchor's; negative if it is better."""
    margin: float
    """Half the width of the interval of that."""


def metric_fall(
    line: Sequence[int],
    metric: MetricSums,
    *,
    anchor: int,
    higher_is_better: bool,
    least: int,
) -> MetricFall | None:
    """Compare the newest versions of a line (newest first) with its anchor.

    None where either has fewer than `least` values, or where the anchor is not of the line.
    """
    sums = metric.by_version
    if anchor not in line or anchor not in sums:
        return None
    recent, taken = Sums(), 0
    for version in line[: line.index(anchor)]:
        if recent.count >= RECENT:
            break
        recent, taken = recent + sums.get(version, Sums()), taken + 1
    before = sums[anchor]
    if min(recent.count, before.count) < least:
        return None
    sign = 1.0 if higher_is_better else -1.0
    compared = (before, recent)
    if metric.is_boolean:
        compared = (before.with_one_of_each(), recent.with_one_of_each())
    return MetricFall(
        anchor=before,
        recent=recent,
        versions=taken,
        worse=sign * (before.mean - recent.mean),
        margin=difference_margin(*compared, alpha=ALPHA),
    )
