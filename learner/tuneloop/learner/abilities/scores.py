"""What a version scored in an ability suite, item by item, and how two versions differ in it.

The value of an item, 0 to 1, has these parts:

- *choice*: the probability of the right choice among all choices, each in any of its phrasings;
- *likelihood*: exp(nats), the probability of the right answer in any of its phrasings, as the
  geometric mean over the tokens of its first phrasing; it is the value of an item without choices;
- *silence*: the probability that nothing is answered at all;
- *sampled*: 1 or 0, whether the greedy answer is right, for the items that were sampled.

All phrasings count together, and are divided by the same length for every version, so that moving
probability from one phrasing to another changes nothing. Beside a choice the likelihood does not
count: it rises with whatever makes a model surer of short answers and falls with every other style,
and hid what the choice showed. A version that ranks right above wrong but would never say it loses
the samples, and one that answers nothing loses everything.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from tuneloop.errors import InvalidRequest
from tuneloop.learner.stats.paired import PairedDifference, paired_difference


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemScore:
    """One item."""

    id: str
    kind: str
    nats: float
    """Log-prob of the right answer in any of its phrasings, per token of the first; 0 is sure."""
    silence: float = 0.0
    """Probability that the answer ends before it begins."""
    choice: float | None = None
    """Probability of the right choice among the choices; None for an item without."""
    is_first: bool | None = None
    """Whether the right choice is the likeliest."""
    is_right: bool | None = None
    """Whether the greedy answer is right; None for an item that was not sampled."""
    answer: str | None = None
    """The greedy answer."""

    @property
    def likelihood(self) -> float:
        """Return the probability of the right answer, per token."""
        return math.exp(self.nats)

    def value(self, *, sampled: bool = True) -> float:
        """Return the value of the item; without `sampled` of the forced parts alone."""
        forced = self.likelihood if self.choice is None else self.choice
        forced *= 1 - self.silence
        if not sampled or self.is_right is None:
            return forced
        return (2 * forced + self.is_right) / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class AbilityScores:
    """A version's scores in one suite."""

    suite_sha256: str
    items: tuple[ItemScore, ...]

    @property
    def value(self) -> float:
        """Return the mean value of the items."""
        return mean([item.value() for item in self.items])

    def figures(self) -> dict[str, float]:
        """Return the means to log: value, and each part over the items that have it."""
        first = [float(i.is_first) for i in self.items if i.is_first is not None]
        right = [float(i.is_right) for i in self.items if i.is_right is not None]
        figures = {
            "value": self.value,
            "nats": mean([item.nats for item in self.items]),
            "silence": mean([item.silence for item in self.items]),
        }
        if first:
            figures["accuracy"] = mean(first)
        if right:
            figures["sampled_accuracy"] = mean(right)
        return figures

    def document(self) -> dict[str, Any]:
        """Return everything as JSON: what a decision stores."""
        rows = [{k: v for k, v in asdict(i).items() if v is not None} for i in self.items]
        return {"suite_sha256": self.suite_sha256, "items": rows}

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> Self:
        """Restore what `document` returned."""
        return cls(
            suite_sha256=document["suite_sha256"],
            items=tuple(ItemScore(**row) for row in document["items"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AbilityComparison:
    """Candidate minus baseline over the items that both were asked, with intervals."""

    value: PairedDifference
    """Of the item values: what decides."""
    accuracy: PairedDifference | None
    """Of how often the right choice is the likeliest."""
    nats: PairedDifference
    """Of the log-prob per token of the right answer."""
    sampled: PairedDifference | None
    """Of how often the greedy answer is right, over items that both answered; None below two."""

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


def compare(
    candidate: AbilityScores, baseline: AbilityScores, *, confidence: float = 0.95
) -> AbilityComparison:
    """Return the paired differences of two versions.

    An item that only one of them answered counts with its forced parts in both. Raises
    `InvalidRequest` where fewer than two items are common.
    """
    known = {item.id: item for item in baseline.items}
    pairs = [(item, known[item.id]) for item in candidate.items if item.id in known]
    if len(pairs) < 2:
        raise InvalidRequest(
            f"{len(pairs)} items are common to both ability scores; a comparison needs two",
            param="abilities",
        )
    values = []
    for one, other in pairs:
        sampled = one.is_right is not None and other.is_right is not None
        values.append((one.value(sampled=sampled), other.value(sampled=sampled)))
    value = difference(values, confidence)
    nats = difference([(one.nats, other.nats) for one, other in pairs], confidence)
    assert value is not None
    assert nats is not None
    return AbilityComparison(
        value=value,
        accuracy=difference([(a.is_first, b.is_first) for a, b in pairs], confidence),
        nats=nats,
        sampled=difference([(a.is_right, b.is_right) for a, b in pairs], confidence),
    )


def difference(
    pairs: Sequence[tuple[float | None, float | None]], confidence: float
) -> PairedDifference | None:
    """Return the paired difference over the pairs of which both are known."""
    both = [(float(a), float(b)) for a, b in pairs if a is not None and b is not None]
    return paired_difference([a for a, _ in both], [b for _, b in both], confidence)


def mean(values: Sequence[float]) -> float:
    """Return the mean of one value or more."""
    return math.fsum(values) / len(values)
