"""How much likelier or less likely a version made what its feedback is about.

A small step rarely changes the likeliest answer, but it changes every probability. Before: the
policy's log-prob of the whole completion as the step that used it began, which the step computes
anyway. After: the same log-prob under the version that has the step, by one teacher-forced forward
pass. Both are at the temperature that the completion was learned at.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.errors import TuneloopError
from tuneloop.learner.ledger.accounting.effects import Effect, Part
from tuneloop.learner.samples import (
    CommentedSample,
    DemonstrationSample,
    PairSample,
    ThumbSample,
    TokenSequence,
    tokens_of,
)
from tuneloop.learner.trainer.base import StepLogprobs

logger = logging.getLogger("tuneloop.learner")

MEASURED = 32
"""Completions measured for a version, the newest: a forward pass must not cost as much as a step.
"""

Compute = Callable[[Sequence[TokenSequence]], Sequence[tuple[float, ...]]]
"""Returns the policy's log-probs of completion tokens; () where it cannot score one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """A completion and how likely it was before a step learned from it."""

    sample_id: str
    objective: str
    part: Part
    sequence: TokenSequence
    logprob: float


class EffectLog:
    """What the steps since the last version learned from, kept in memory; a restart loses it."""

    def __init__(self, limit: int = MEASURED) -> None:
        self._kept: deque[Before] = deque(maxlen=limit)

    def note(self, used: Mapping[str, Sequence[Any]], logprobs: StepLogprobs) -> None:
        """Keep the judged completions of a step; `logprobs` are those from before it."""
        for objective, group in used.items():
            for sample in group:
                for part, sequence in parts_of(sample):
                    if (known := logprobs.get(tokens_of(sequence))) is None:
                        continue
                    learned, logprob = known
                    self._kept.append(
                        Before(
                            sample_id=sample.sample_id,
                            objective=objective,
                            part=part,
                            sequence=learned,
                            logprob=logprob,
                        )
                    )

    def measure(self, compute: Compute) -> list[Effect]:
        """Return what has changed under the weights as they are, and drop what was kept.

        A failure is only logged: a version is worth more than what is told of it.
        """
        kept = list(self._kept)
        self._kept.clear()
        if not kept:
            return []
        try:
            after = compute([one.sequence for one in kept])
        except (TuneloopError, RuntimeError) as error:
            logger.warning("what a version changed could not be measured: %s", error)
            return []
        return [
            Effect(
                sample_id=one.sample_id,
                objective=one.objective,
                part=one.part,
                tokens=len(logprobs),
                logprob_before=one.logprob,
                logprob_after=sum(logprobs),
            )
            for one, logprobs in zip(kept, after, strict=True)
            if logprobs
        ]


def parts_of(sample: Any) -> tuple[tuple[Part, TokenSequence], ...]:
    """Return the completions of a sample that somebody judged; none of a scored one."""
    match sample:
        case ThumbSample(sequence=answer) | CommentedSample(sequence=answer):
            return (("answer", answer),)
        case DemonstrationSample(sequence=better):
            return (("chosen", better),)
        case PairSample(chosen=chosen, rejected=rejected):
            return (("chosen", chosen), ("rejected", rejected))
    return ()
