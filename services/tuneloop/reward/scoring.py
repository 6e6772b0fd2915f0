"""Combines all scorers: every completion gets each scorer's output and one reward.

The reward is the weighted sum of the scores of the informative scorers; while none is informative,
of all scorers. Where one of them cannot score a completion, or failed on it, the completion has no
reward: leaving its part out would be to score it 0. A failure spoils neither other completions nor
what other scorers say.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tuneloop.reward import metrics
from tuneloop.reward.normalization import Normalizer
from tuneloop.reward.outputs import Columns, Failure, ScorerOutput, check_columns, run_scorer
from tuneloop.reward.scorer import Scorer, ScoringInput, columns_of
from tuneloop.reward.scorers.deadline import LimitedScorer
from tuneloop.reward.scorers.reward_model import RewardModelScorer
from tuneloop.rollouts import Score, ScorerResult
from tuneloop.telemetry import quote

logger = logging.getLogger("tuneloop.reward")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredBatch:
    """Scores in the order of the candidates, all by the same version of the reward model."""

    scores: tuple[Score, ...]
    reward_model_version: int
    failures: Mapping[int, str] = field(default_factory=dict)
    """Rows that a scorer failed on, with the problem."""


class Scoring:
    """The scorers of this process; one thread scores while another may swap the reward model."""

    def __init__(
        self,
        others: Sequence[Scorer],
        reward_model: RewardModelScorer | None = None,
        *,
        normalize: bool = False,
    ) -> None:
        """Take the scorers; `normalize` adds scores up in standard deviations, not raw."""
        self._others = tuple(others)
        self._normalizer = Normalizer() if normalize else None
        self.reward_model = reward_model
        """The version in use; replaced as a whole."""

    @property
    def reward_model_version(self) -> int:
        """0 without a reward model, or with the base one."""
        return 0 if self.reward_model is None else self.reward_model.version

    @property
    def scorers(self) -> tuple[Scorer, ...]:
        """All of them, the reward model first."""
        reward_model = self.reward_model
        return self._others if reward_model is None else (reward_model, *self._others)

    @property
    def hanging(self) -> tuple[str, ...]:
        """Names of functions that have not returned from a batch after their timeout."""
        return tuple(s.name for s in self._others if isinstance(s, LimitedScorer) and s.hangs)

    def close(self) -> None:
        """Stop waiting for functions, because the process ends."""
        for scorer in self._others:
            if isinstance(scorer, LimitedScorer):
                scorer.close()

    def score(self, candidates: Sequence[ScoringInput], *, learn: bool = False) -> ScoredBatch:
        """Score a batch. Does not raise if a scorer does.

        `learn` adds the scores to the running statistics, if there are any: the scale is measured
        on rollouts, not on requests for scores.
        """
        with metrics.batch_seconds.time():
            outputs = self._run_scorers(
                [c.prompt for c in candidates],
                [c.completion for c in candidates],
                columns_of(candidates),
                learn=learn,
            )
        failures: dict[int, str] = {}
        for scorer, column in outputs:
            for row, output in enumerate(column):
                count_output(scorer, output)
                if isinstance(output, Failure):
                    failures[row] = f"scorer {scorer.name} {output.problem}"
                    where = candidates[row].completion_id or f"{row + 1} of a request"
                    problem = quote(output.problem, output.gist)
                    logger.warning("completion %s: scorer %s %s", where, scorer.name, problem)
        scores = tuple(self._combine(outputs, row) for row in range(len(candidates)))
        for score in scores:
            if score.reward is not None:
                metrics.rewards.observe(score.reward)
        return ScoredBatch(
            scores=scores,
            reward_model_version=max((version_of(scorer) for scorer, _ in outputs), default=0),
            failures=failures,
        )

    def rewards(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Columns,
        *,
        places: Sequence[str] | None = None,
    ) -> list[float | None]:
        """Score rows of a file; None if a scorer declares that it cannot score the completion.

        The running statistics, if there are any, learn from these rows first.

        Raises:
            InvalidRequest: as `outputs.score_rows`.

        """
        check_columns(completions, columns)
        outputs = self._run_scorers(prompts, completions, columns, learn=True)
        for row in range(len(completions)):
            for scorer, column in outputs:
                failure = column[row]
                if isinstance(failure, Failure):
                    raise failure.at(scorer.name, row, completions[row], places)
        return [self._combine(outputs, row).reward for row in range(len(completions))]

    def _run_scorers(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Columns,
        *,
        learn: bool,
    ) -> list[tuple[Scorer, list[ScorerOutput]]]:
        outputs = [(s, run_scorer(s, prompts, completions, columns)) for s in self.scorers]
        if learn and self._normalizer is not None:
            for scorer, column in outputs:
                scores = [score_of(output) for output in column]
                self._normalizer.learn(scorer.name, version_of(scorer), scores)
        return outputs

    def _combine(self, outputs: Sequence[tuple[Scorer, list[ScorerOutput]]], row: int) -> Score:
        results = [
            ScorerResult(
                scorer=scorer.name,
                score=score_of(column[row]),
                weight=scorer.weight,
                informative=scorer.informative,
            )
            for scorer, column in outputs
        ]
        if any(isinstance(column[row], Failure) for _, column in outputs):
            return Score(reward=None, results=tuple(results))
        return combine(results, self._normalizer)


def combine(results: Sequence[ScorerResult], normalizer: Normalizer | None = None) -> Score:
    """Combine the results of one completion into a reward; the results keep the raw scores."""
    counted = [r for r in results if r.informative] or results
    terms: list[float] = []
    for r in counted:
        if r.score is None:
            return Score(reward=None, results=tuple(results))
        score = r.score if normalizer is None else normalizer.normalized(r.scorer, r.score)
        terms.append(r.weight * score)
    return Score(reward=math.fsum(terms) if terms else None, results=tuple(results))


def version_of(scorer: Scorer) -> int:
    """Return the version of a reward model; 0 for other scorers."""
    return scorer.version if isinstance(scorer, RewardModelScorer) else 0


def score_of(output: ScorerOutput) -> float | None:
    """Return the number, or None for a failure."""
    return None if isinstance(output, Failure) else output


def count_output(scorer: Scorer, output: ScorerOutput) -> None:
    """Count an output in the metrics."""
    match output:
        case Failure(reason=reason):
            metrics.unscored.labels(scorer.name, reason).inc()
        case None:
            metrics.unscored.labels(scorer.name, "no_score").inc()
        case _:
            metrics.scored.labels(scorer.name).inc()
