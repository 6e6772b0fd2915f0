"""All scorers together: every completion gets each scorer's verdict and one reward.

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
from tuneloop.reward.scorer import Candidate, Scorer, columns_of
from tuneloop.reward.scorers.deadline import LimitedScorer
from tuneloop.reward.scorers.reward_model import RewardModelScorer
from tuneloop.reward.verdicts import Columns, Failure, Verdict, ask, check_columns
from tuneloop.rollouts import Score, ScorerResult
from tuneloop.telemetry import quote

logger = logging.getLogger("tuneloop.reward")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredBatch:
    """Scores in the order of the candidates, all by the same version of the reward model."""

    scores: tuple[Score, ...]
    reward_model_version: int
    failures: Mapping[int, str] = field(default_factory=dict)
    """Rows that a scorer failed on, and how."""


class Scoring:
    """The scorers of this process; one thread scores while another may swap the reward model."""

    def __init__(
        self,
        others: Sequence[Scorer],
        reward_model: RewardModelScorer | None = None,
        *,
        normalize: bool = False,
    ) -> None:
        """Take what scores; `normalize` adds scores up in standard deviations, not raw."""
        self._others = tuple(others)
        self._normalizer = Normalizer() if normalize else None
        self.reward_model = reward_model
        """The version in use; replaced as a whole."""

    @property
    def reward_model_version(self) -> int:
        """0 where there is no reward model, or an untrained one."""
        return 0 if self.reward_model is None else self.reward_model.version

    @property
    def scorers(self) -> tuple[Scorer, ...]:
        """All of them, the reward model first."""
        reward_model = self.reward_model
        return self._others if reward_model is None else (reward_model, *self._others)

    @property
    def hanging(self) -> tuple[str, ...]:
        """Names of functions that have not come back from a batch they were overdue with."""
        return tuple(s.name for s in self._others if isinstance(s, LimitedScorer) and s.hangs)

    def close(self) -> None:
        """Wait for functions no longer: for the end of the process."""
        for scorer in self._others:
            if isinstance(scorer, LimitedScorer):
                scorer.close()

    def score(self, candidates: Sequence[Candidate], *, learn: bool = False) -> ScoredBatch:
        """Score a batch; does not raise where a scorer does.

        `learn` takes the scores into the running statistics, where there are any: rollouts are
        what the scale is measured on, not whatever somebody asks to be scored.
        """
        with metrics.batch_seconds.time():
            verdicts = self._ask(
                [c.prompt for c in candidates],
                [c.completion for c in candidates],
                columns_of(candidates),
                learn=learn,
            )
        failures: dict[int, str] = {}
        for scorer, column in verdicts:
            for row, verdict in enumerate(column):
                count(scorer, verdict)
                if isinstance(verdict, Failure):
                    failures[row] = f"scorer {scorer.name} {verdict.problem}"
                    where = candidates[row].completion_id or f"{row + 1} of a request"
                    problem = quote(verdict.problem, verdict.gist)
                    logger.warning("completion %s: scorer %s %s", where, scorer.name, problem)
        scores = tuple(self._combine(verdicts, row) for row in range(len(candidates)))
        for score in scores:
            if score.reward is not None:
                metrics.rewards.observe(score.reward)
        return ScoredBatch(
            scores=scores,
            reward_model_version=max((version_of(scorer) for scorer, _ in verdicts), default=0),
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
        """Score rows of a file; None where a scorer declares that it cannot score the completion.

        Statistics, where there are any, learn from these rows first.

        Raises:
            InvalidRequest: as `verdicts.score_rows`.

        """
        check_columns(completions, columns)
        verdicts = self._ask(prompts, completions, columns, learn=True)
        for row in range(len(completions)):
            for scorer, column in verdicts:
                failure = column[row]
                if isinstance(failure, Failure):
                    raise failure.at(scorer.name, row, completions[row], places)
        return [self._combine(verdicts, row).reward for row in range(len(completions))]

    def _ask(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Columns,
        *,
        learn: bool,
    ) -> list[tuple[Scorer, list[Verdict]]]:
        verdicts = [(s, ask(s, prompts, completions, columns)) for s in self.scorers]
        if learn and self._normalizer is not None:
            for scorer, column in verdicts:
                scores = [score_of(verdict) for verdict in column]
                self._normalizer.learn(scorer.name, version_of(scorer), scores)
        return verdicts

    def _combine(self, verdicts: Sequence[tuple[Scorer, list[Verdict]]], row: int) -> Score:
        results = [
            ScorerResult(
                scorer=scorer.name,
                score=score_of(column[row]),
                weight=scorer.weight,
                informative=scorer.informative,
            )
            for scorer, column in verdicts
        ]
        if any(isinstance(column[row], Failure) for _, column in verdicts):
            return Score(reward=None, results=tuple(results))
        return combine(results, self._normalizer)


def combine(results: Sequence[ScorerResult], normalizer: Normalizer | None = None) -> Score:
    """One reward out of the verdicts on one completion; the results keep the raw scores."""
    heard = [r for r in results if r.informative] or results
    terms: list[float] = []
    for r in heard:
        if r.score is None:
            return Score(reward=None, results=tuple(results))
        score = r.score if normalizer is None else normalizer.normalized(r.scorer, r.score)
        terms.append(r.weight * score)
    return Score(reward=math.fsum(terms) if terms else None, results=tuple(results))


def version_of(scorer: Scorer) -> int:
    """The version of a reward model; 0 for scorers that have none."""
    return scorer.version if isinstance(scorer, RewardModelScorer) else 0


def score_of(verdict: Verdict) -> float | None:
    """The number, where there is one."""
    return None if isinstance(verdict, Failure) else verdict


def count(scorer: Scorer, verdict: Verdict) -> None:
    """Count a verdict in the metrics."""
    match verdict:
        case Failure(reason=reason):
            metrics.unscored.labels(scorer.name, reason).inc()
        case None:
            metrics.unscored.labels(scorer.name, "no_score").inc()
        case _:
            metrics.scored.labels(scorer.name).inc()
