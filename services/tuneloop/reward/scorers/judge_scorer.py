"""The judge as a scorer: an absolute score from its ratings.

Ratings from 1 to 10 in words, not the log-prob of a yes: every endpoint gives words, few give
log-probs. Comparing two answers is the better use of a judge; this is for when there is only one.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.reward.scorers.judge import Judge

SCORER_NAME = "judge"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeScorer:
    """A rating as a score from −1 (1 of 10) to 1 (10 of 10)."""

    judge: Judge
    weight: float
    informative: bool = True
    name: str = SCORER_NAME

    async def score(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> list[float | BaseException | None]:
        """Scores; None where the judge abstains, an error where it cannot be reached."""
        pairs = zip(prompts, completions, strict=True)
        ratings = await asyncio.gather(
            *(self.judge.rate(prompt, completion) for prompt, completion in pairs),
            return_exceptions=True,
        )
        return [(r - 5.5) / 4.5 if isinstance(r, float) else r for r in ratings]
