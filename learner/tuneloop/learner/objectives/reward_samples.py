"""What the samples of the reward model say: their texts, what is wrong with them, silences."""

import math
from collections.abc import Sequence

from tuneloop.learner.samples import (
    LabelledText,
    PreferredText,
    RankedText,
    RatedText,
    RewardSample,
    SignalledText,
)


def texts_of(sample: RewardSample) -> tuple[str, ...]:
    """Return the completions of a sample, best first."""
    match sample:
        case LabelledText() | SignalledText() | RatedText():
            return (sample.completion,)
        case PreferredText():
            return (sample.chosen, sample.rejected)
        case RankedText():
            return sample.completions


def silences(samples: Sequence[RewardSample]) -> list[PreferredText]:
    """Return pairs that say of judged answers that they are better than none.

    Of a pair or a ranking the worst answer, of thumbs those that went up. Nobody ever judges an
    empty answer, so without these its score is whatever the model makes of text it never saw: where
    short answers are liked, the highest of all.
    """
    found = []
    for sample in samples:
        if isinstance(sample, RatedText) or (
            isinstance(sample, LabelledText) and not sample.desirable
        ):
            continue
        pair = PreferredText(
            sample_id=sample.sample_id,
            prompt=sample.prompt,
            chosen=texts_of(sample)[-1],
            rejected="",
            weight=sample.weight,
            trust=sample.trust,
        )
        found.append(pair)
    return found


def problem_of(sample: RewardSample) -> str:
    """Return what is wrong with a sample's numbers; empty if nothing is."""
    if not (math.isfinite(sample.weight) and sample.weight >= 0):
        return f"weight {sample.weight} is not a number from 0 up"
    if not 0 <= sample.trust <= 1:
        return f"trust {sample.trust} is not between 0 and 1"
    if isinstance(sample, PreferredText) and not math.isfinite(sample.margin):
        return f"margin {sample.margin} is not finite"
    if isinstance(sample, RatedText) and not math.isfinite(sample.rating):
        return f"rating {sample.rating} is not finite"
    if isinstance(sample, RankedText) and len(sample.completions) < 2:
        return f"a ranking of {len(sample.completions)} answers says nothing"
    return ""


def weight_of(samples: Sequence[RewardSample]) -> float:
    """Return what samples weigh together, however far they are trusted."""
    return math.fsum(sample.weight for sample in samples)
