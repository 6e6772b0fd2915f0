"""The examination of a candidate: its weights, its suites, then its answers next to the stable's.

What the trainer scored when it saved the version decides first (`suites`). Then the greedy
answers that both versions gave in the trainer (`local_answers`) are compared. A stable version that
was not asked there answers through generation, which serves it. In the end generation loads an
adapter that passes, without routing anybody to it: weights that it refuses fail. What is not known
raises, so that no version is decided about on half of what there is to know.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from tuneloop.errors import Unavailable, WeightsRefused
from tuneloop.learner.clients.generation import PromptRequest
from tuneloop.learner.data.tokenize import PromptTokens
from tuneloop.learner.ledger.accounting.versions import Version
from tuneloop.learner.release.gate.answers import GateMeasurements, Measures, measure
from tuneloop.learner.release.gate.prompts import GatePrompts
from tuneloop.learner.release.gate.settings import GateSettings
from tuneloop.learner.release.gate.suites import (
    SuiteComparison,
    SuiteScores,
    compare_suites,
    items_of_decision,
)
from tuneloop.learner.release.gate.verdict import GateVerdict, judge, refused
from tuneloop.learner.release.gate.weight_delta import BaseDistance, WeightDelta
from tuneloop.learner.samples import SampledAnswer, TokenSequence
from tuneloop.learner.stats.paired import PairedDifference, paired_difference
from tuneloop.policies import WeightsKind, WeightsReference
from tuneloop.rollouts import RolloutSource, SamplingParameters, Score
from tuneloop.weights.finite import check_finite
from tuneloop.weights.store import WeightStore

ANSWER_SECONDS = 180.0

ReferenceLogprobs = Callable[[Sequence[TokenSequence]], Awaitable[list[tuple[float, ...]]]]


class AnswersPrompts(Protocol):
    """The generation service; see `tuneloop.learner.clients.generation`."""

    async def load(self, weights: WeightsReference) -> None:
        """Have a version held without serving it."""
        ...

    async def answer(self, question: PromptRequest, seconds: float) -> SampledAnswer:
        """Return the answer to a question, within `seconds`."""
        ...


class KeptSuites(Protocol):
    """See `tuneloop.learner.release.gate.suites`."""

    def of_version(self, version: int) -> SuiteScores | None:
        """Return what a version scored, or None."""
        ...

    def kl_of_version(self, version: int) -> float | None:
        """Return its KL to version 0 in nats per token, or None."""
        ...


class KeptAnswers(Protocol):
    """See `tuneloop.learner.release.gate.local_answers`."""

    def of_version(self, version: int) -> list[SampledAnswer] | None:
        """Return what a version answered in the trainer, or None."""
        ...

    def keep(self, version: int, answers: Sequence[SampledAnswer]) -> None:
        """Save what a version answered elsewhere."""
        ...


class ScoresAnswers(Protocol):
    """The reward service; see `tuneloop.learner.clients.reward`."""

    async def scores(self, asked: PromptTokens, completions: Sequence[str]) -> list[Score]:
        """Return one score for each completion of a prompt."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredAnswers:
    """A version's answers, in the order of the questions."""

    answers: Sequence[SampledAnswer]
    measures: Measures


class CandidateEvaluator:
    """Examines one candidate at a time."""

    def __init__(
        self,
        *,
        generation: AnswersPrompts,
        scoring: ScoresAnswers,
        store: WeightStore,
        distance: BaseDistance,
        questions: GatePrompts,
        reference_logprobs: ReferenceLogprobs,
        local_answers: KeptAnswers,
        suites: KeptSuites | None = None,
        examined: Callable[[], int] = lambda: 0,
        evidence: Callable[[int, int], float] = lambda candidate, stable: 0.0,
        settings: GateSettings,
    ) -> None:
        """`suites` is None if nothing is scored; `examined` counts the candidates decided about.

        `evidence` says what a candidate learned from since the stable version, in full steps.
        """
        self._generation = generation
        self._is_adapter = distance.kind is not WeightsKind.FULL
        self._scoring = scoring
        self._store = store
        self._distance = distance
        self._questions = questions
        self._reference_logprobs = reference_logprobs
        self._local_answers = local_answers
        self._settings = settings
        self._suites = suites
        self._examined = examined
        self._evidence = evidence

    async def examine(self, candidate: Version, stable: Version | None) -> GateVerdict:
        """Examine a stored candidate; `stable` is None while the base model serves.

        Raises `TuneloopError` if a service cannot be reached: then nothing is known about it.
        """
        number = 0 if stable is None else stable.version
        try:
            verdict = await self._judge(candidate, number)
            if verdict.passed and self._is_adapter:
                await self._generation.load(candidate.reference)
        except WeightsRefused as error:
            return refused(f"its weights are refused: {error.message}")
        return verdict

    async def _judge(self, candidate: Version, stable: int) -> GateVerdict:
        first = await asyncio.to_thread(self._take_first_look, candidate, stable)
        verdict = judge(first, self._settings)
        if not verdict.passed:
            return verdict
        answered = await self._answered_by_candidate(candidate, estimates_kl=first.kl is None)
        before = await self._answered_by_stable(stable)
        measured = replace(first, candidate=answered.measures, stable=before.measures)
        if token_ids_of(answered) == token_ids_of(before):
            # Scorers would say the same of both.
            return judge(replace(measured, same_answers=True), self._settings)
        reward, rewards = await self._compare_rewards(answered, before)
        return judge(replace(measured, reward=reward, rewards=rewards), self._settings)

    def _take_first_look(self, candidate: Version, stable: int) -> GateMeasurements:
        """Measure what needs no sampling; blocks."""
        change = self._change_of(candidate.reference)
        compared, items = self._compare_suites(candidate.version, stable)
        kl = stable_kl = None
        if self._suites is not None:
            kl = self._suites.kl_of_version(candidate.version)
            stable_kl = self._suites.kl_of_version(stable)
        return GateMeasurements(
            change=change.relative,
            change_norm=change.norm,
            stable_version=stable,
            kl=kl,
            stable_kl=stable_kl,
            evidence=self._evidence(candidate.version, stable),
            suites=compared,
            items=items,
        )

    def _compare_suites(
        self, candidate: int, stable: int
    ) -> tuple[list[SuiteComparison], dict[str, Any]]:
        """Compare what the trainer scored; raises `Unavailable` if the candidate was not scored."""
        if self._suites is None:
            return [], {}
        scores = self._suites.of_version(candidate)
        anchor = self._suites.of_version(0)
        if scores is None or anchor is None:
            raise Unavailable(
                f"version {candidate} was not scored on the suites when it was saved; the next "
                f"version replaces it, or `tuneloop policies promote {candidate}` lets it serve"
            )
        # An old stable version may never have been scored; version 0 always was.
        before = self._suites.of_version(stable) or {}
        compared = compare_suites(
            scores, before, anchor, number=self._examined() + 1, settings=self._settings
        )
        return compared, items_of_decision(scores, before, anchor)

    def _change_of(self, reference: WeightsReference) -> WeightDelta:
        folder: Path
        _, folder = self._store.fetch(reference)
        check_finite(folder)
        return self._distance.of(folder)

    async def _answered_by_candidate(
        self, candidate: Version, *, estimates_kl: bool
    ) -> MeasuredAnswers:
        """Return what the candidate answered in the trainer; raises `Unavailable` if nothing."""
        answers = await asyncio.to_thread(self._local_answers.of_version, candidate.version)
        if answers is None:
            raise Unavailable(
                f"version {candidate.version} did not answer the gate's prompts when it was saved; "
                f"the next version replaces it, or `tuneloop policies promote {candidate.version}` "
                "lets it serve"
            )
        references = await self._references_of(answers) if estimates_kl else ()
        measures = measure(answers, references, self._questions.special_ids)
        return MeasuredAnswers(answers=answers, measures=measures)

    async def _answered_by_stable(self, version: int) -> MeasuredAnswers:
        answers = await asyncio.to_thread(self._local_answers.of_version, version)
        if answers is None:
            answers = await self._ask_stable(version)
            await asyncio.to_thread(self._local_answers.keep, version, answers)
        measures = measure(answers, (), self._questions.special_ids)
        return MeasuredAnswers(answers=answers, measures=measures)

    async def _ask_stable(self, version: int) -> list[SampledAnswer]:
        """Return the answers of the version that serves, by generation, one after another."""
        sampling = SamplingParameters(temperature=0.0, max_tokens=self._settings.max_tokens, seed=0)
        requests = [
            PromptRequest(
                completion_id=f"gate-{version}-{number}",
                row=row,
                sampling=sampling,
                source=RolloutSource.EVAL,
                policy_version=version,
                recorded=False,
            )
            for number, row in enumerate(self._questions.rows)
        ]
        return [await self._generation.answer(request, ANSWER_SECONDS) for request in requests]

    async def _references_of(self, answers: Sequence[SampledAnswer]) -> Sequence[tuple[float, ...]]:
        """Return the base model's log-probs of the answers; () for one that does not fit."""
        return await self._reference_logprobs(
            [
                TokenSequence(
                    prompt_token_ids=row.asked.token_ids,
                    completion_token_ids=answer.token_ids,
                    generation_logprobs=answer.logprobs,
                    temperature=1.0,
                )
                for row, answer in zip(self._questions.rows, answers, strict=True)
            ]
        )

    async def _compare_rewards(
        self, candidate: MeasuredAnswers, stable: MeasuredAnswers
    ) -> tuple[PairedDifference | None, dict[str, Any]]:
        """Score both versions' answers to a prompt in one call, so by the same scorers."""
        scored = await complete_all(
            self._scoring.scores(row.asked, [ours.text, theirs.text])
            for row, ours, theirs in zip(
                self._questions.rows, candidate.answers, stable.answers, strict=True
            )
        )
        pairs = [
            (ours.reward, theirs.reward)
            for ours, theirs in scored
            if ours.informative and theirs.informative
            if ours.reward is not None and theirs.reward is not None
        ]
        if not pairs:
            return None, {}
        first, second = ([pair[side] for pair in pairs] for side in (0, 1))
        scorers = {r.scorer for score in scored[0] for r in score.results if r.informative}
        rewards = {
            "candidate": first,
            "stable": second,
            "candidate_mean": math.fsum(first) / len(first),
            "stable_mean": math.fsum(second) / len(second),
            "scorers": sorted(scorers),
        }
        return paired_difference(first, second, self._settings.confidence), rewards


def token_ids_of(measured: MeasuredAnswers) -> list[tuple[int, ...]]:
    """Return the token ids of a version's answers."""
    return [answer.token_ids for answer in measured.answers]


async def complete_all(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """Return the results in order; after a failure await the other calls, then raise it."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
