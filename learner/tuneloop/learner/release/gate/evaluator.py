"""The examination of a candidate: its weights, its suites, then its answers next to the stable's.

What the trainer scored when it saved the version decides first (`suites`): if it fails, nothing is
sampled. Then both versions answer the same prompts at temperature 0, through the running generation
service, which holds the candidate without routing anybody to it; full weights answer in the trainer
(`local_answers`). The stable version's answers are kept: it is asked once, and not at all if it was
a candidate of this process. What cannot be asked raises, so that no version is decided about on
half of what there is to know.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from tuneloop.errors import Unavailable, WeightsRefused
from tuneloop.learner.data.tokenize import PromptTokens
from tuneloop.learner.ledger.accounting.versions import Version
from tuneloop.learner.release.gate.answers import GateMeasurements, Measures, measure
from tuneloop.learner.release.gate.asking import AnswersPrompts, GateAsker, complete_all
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
from tuneloop.policies import WeightsReference
from tuneloop.rollouts import Score
from tuneloop.weights.finite import check_finite
from tuneloop.weights.store import WeightStore

KEPT = 4
"""The number of versions whose answers are kept."""

ReferenceLogprobs = Callable[[Sequence[TokenSequence]], Awaitable[list[tuple[float, ...]]]]


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
        local_answers: KeptAnswers | None,
        suites: KeptSuites | None = None,
        examined: Callable[[], int] = lambda: 0,
        evidence: Callable[[int, int], float] = lambda candidate, stable: 0.0,
        settings: GateSettings,
    ) -> None:
        """`local_answers` is for full weights; None if generation can hold versions (LoRA).

        `suites` is None if nothing is scored; `examined` counts the candidates decided about;
        `evidence` says what a candidate learned from since the stable version, in full steps.
        """
        self._asker = GateAsker(generation, questions, settings)
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
        self._known: dict[int, MeasuredAnswers] = {}

    async def examine(self, candidate: Version, stable: Version | None) -> GateVerdict:
        """Examine a stored candidate; `stable` is None while the base model serves.

        Raises `TuneloopError` if a service cannot be reached: then nothing is known about it.
        """
        number = 0 if stable is None else stable.version
        try:
            first = await asyncio.to_thread(self._take_first_look, candidate, number)
            verdict = judge(first, self._settings)
            if not verdict.passed:
                return verdict
            before, answered = await complete_all(
                (self._answered(stable), self._answered(candidate, estimates_kl=first.kl is None))
            )
        except WeightsRefused as error:
            return refused(f"its weights are refused: {error.message}")
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

    async def _answered(
        self, version: Version | None, *, estimates_kl: bool = False
    ) -> MeasuredAnswers:
        """Return the answers of a version (None: the base model), asking for unknown ones."""
        number = 0 if version is None else version.version
        if number not in self._known:
            answers = await self._answers_of(version)
            references = await self._references_of(answers) if estimates_kl else ()
            measures = measure(answers, references, self._questions.special_ids)
            self._known[number] = MeasuredAnswers(answers=answers, measures=measures)
            while len(self._known) > KEPT:
                del self._known[next(iter(self._known))]
        # Moved to the end, so that what is still compared with is dropped last.
        self._known[number] = self._known.pop(number)
        return self._known[number]

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

    async def _answers_of(self, version: Version | None) -> Sequence[SampledAnswer]:
        if version is None:
            return await self._asker.ask(0, None)
        if self._local_answers is None:
            return await self._asker.ask(version.version, version.reference)
        answered = await asyncio.to_thread(self._local_answers.of_version, version.version)
        # The stable version can be asked; a candidate without saved answers is held.
        if answered is None:
            answered = await self._asker.ask(version.version, None)
        return answered

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
