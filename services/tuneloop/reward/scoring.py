"""All scorers together: every completion gets each scorer's verdict and one reward.

The reward is the weighted sum of the scores of the informative scorers; while none is informative,
of all scorers. It is absent where none of them could score. A scorer that fails on a completion
leaves its score absent, never 0, and spoils neither other completions nor other scorers.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tuneloop.reward import metrics
from tuneloop.reward.reward_model import RewardModelScorer
from tuneloop.reward.scorer import Candidate, Scorer, columns_of
from tuneloop.rollouts import Score, ScorerResult

log = logging.getLogger("tuneloop.reward")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredBatch:
    """Scores in the order of the candidates, all by the same version of the reward model."""

    scores: tuple[Score, ...]
    reward_model_version: int


class Scoring:
    """The scorers of this process; one thread scores while another may swap the reward model."""

    def __init__(
        self, functions: Sequence[Scorer], reward_model: RewardModelScorer | None = None
    ) -> None:
        self._functions = tuple(functions)
        self.reward_model = reward_model
        """The version in use; replaced as a whole."""

    @property
    def reward_model_version(self) -> int:
        """0 where there is no reward model, or an untrained one."""
        return 0 if self.reward_model is None else self.reward_model.version

    def score(self, candidates: Sequence[Candidate]) -> ScoredBatch:
        """Score a batch; does not raise where a scorer does."""
        reward_model = self.reward_model
        scorers: tuple[Scorer, ...] = self._functions
        if reward_model is not None:
            scorers = (reward_model, *scorers)
        with metrics.batch_seconds.time():
            verdicts = [(scorer, ask(scorer, candidates)) for scorer in scorers]
        scores = tuple(
            combine([result(scorer, column[row]) for scorer, column in verdicts])
            for row in range(len(candidates))
        )
        for score in scores:
            if score.reward is not None:
                metrics.rewards.observe(score.reward)
        version = 0 if reward_model is None else reward_model.version
        return ScoredBatch(scores=scores, reward_model_version=version)


def result(scorer: Scorer, score: float | None) -> ScorerResult:
    """A scorer's verdict on one completion."""
    return ScorerResult(
        scorer=scorer.name, score=score, weight=scorer.weight, informative=scorer.informative
    )


def combine(results: Sequence[ScorerResult]) -> Score:
    """One reward out of the verdicts on one completion."""
    heard = [r for r in results if r.informative] or results
    terms = [r.weight * r.score for r in heard if r.score is not None]
    return Score(reward=math.fsum(terms) if terms else None, results=tuple(results))


def ask(scorer: Scorer, candidates: Sequence[Candidate]) -> list[float | None]:
    """The scorer's verdict on each candidate; None, logged and counted, where it fails."""
    try:
        answer = list(
            scorer.score(
                [c.prompt for c in candidates],
                [c.completion for c in candidates],
                **columns_of(candidates),
            )
        )
    except Exception as error:
        # A scorer may be anybody's code, and may raise anything.
        if len(candidates) > 1:
            # One completion must not cost the others their score.
            return [score for candidate in candidates for score in ask(scorer, [candidate])]
        failed(scorer, candidates[0], "error", f"{type(error).__name__}: {error}")
        return [None]
    if len(answer) != len(candidates):
        problem = f"{len(answer)} scores for {len(candidates)} completions"
        for candidate in candidates:
            failed(scorer, candidate, "wrong_length", problem)
        return [None] * len(candidates)
    scores = [checked(scorer, c, value) for c, value in zip(candidates, answer, strict=True)]
    metrics.scored.labels(scorer.name).inc(sum(score is not None for score in scores))
    return scores


def checked(scorer: Scorer, candidate: Candidate, value: object) -> float | None:
    """A finite number, or None with the reason logged and counted."""
    if value is None:
        metrics.unscored.labels(scorer.name, "no_score").inc()
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        failed(scorer, candidate, "not_a_number", f"returned {value!r}")
        return None
    if not math.isfinite(number):
        failed(scorer, candidate, "not_finite", f"returned {number}")
        return None
    return number


def failed(scorer: Scorer, candidate: Candidate, reason: str, problem: str) -> None:
    """Log and count a completion that a scorer failed to score."""
    metrics.unscored.labels(scorer.name, reason).inc()
    where = candidate.completion_id or f"{candidate.completion[:60]!r}"
    log.warning("scorer %s failed on completion %s: %s", scorer.name, where, problem)
