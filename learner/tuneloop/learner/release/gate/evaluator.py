"""The examination of a candidate: its weights, then its answers next to the stable version's.

Both answer the same prompts at temperature 0, through the running generation service, which holds
the candidate without routing anybody to it; full weights answer in the trainer (`local_answers`).
The stable version's answers are kept: it is asked once, and not at all if it was a candidate of
this process. What cannot be asked raises, so that no version is decided about on half of what there
is to know.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tuneloop.errors import NotFound, Unavailable, WeightsRefused
from tuneloop.learner.clients.generation import PromptRequest
from tuneloop.learner.data.tokenize import PromptTokens
from tuneloop.learner.ledger.accounting.versions import Version
from tuneloop.learner.release.gate.answers import GateMeasurements, Measures, measure
from tuneloop.learner.release.gate.prompts import GatePrompts
from tuneloop.learner.release.gate.settings import GateSettings
from tuneloop.learner.release.gate.verdict import GateVerdict, judge, refused
from tuneloop.learner.release.gate.weight_delta import BaseDistance, WeightDelta
from tuneloop.learner.samples import SampledAnswer, TokenSequence
from tuneloop.learner.stats.paired import PairedDifference, paired_difference
from tuneloop.policies import WeightsReference
from tuneloop.rollouts import RolloutSource, SamplingParameters, Score
from tuneloop.weights.finite import check_finite
from tuneloop.weights.store import WeightStore

ANSWER_SECONDS = 180.0
ATTEMPTS = 4
"""Attempts to get an answer, as the replica asked may not hold the version."""
KEPT = 4
"""The number of versions whose answers are kept."""

ReferenceLogprobs = Callable[[Sequence[TokenSequence]], Awaitable[list[tuple[float, ...]]]]


class AnswersPrompts(Protocol):
    """The generation service; see `tuneloop.learner.clients.generation`."""

    async def load(self, weights: WeightsReference) -> None:
        """Have a version held without serving it."""
        ...

    async def answer(self, question: PromptRequest, seconds: float) -> SampledAnswer:
        """Return the answer to a question, within `seconds`."""
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
        settings: GateSettings,
    ) -> None:
        """`local_answers` is for full weights; None if generation can hold versions (LoRA)."""
        self._generation = generation
        self._scoring = scoring
        self._store = store
        self._distance = distance
        self._questions = questions
        self._reference_logprobs = reference_logprobs
        self._local_answers = local_answers
        self._settings = settings
        self._known: dict[int, MeasuredAnswers] = {}
        self._heard: dict[tuple[int, int], SampledAnswer] = {}
        """Answers by version and question, of versions that have not answered all of them."""

    async def examine(self, candidate: Version, stable: Version | None) -> GateVerdict:
        """Examine a stored candidate; `stable` is None while the base model serves.

        Raises `TuneloopError` if a service cannot be reached: then nothing is known about it.
        """
        try:
            change = await asyncio.to_thread(self._change_of, candidate.reference)
            before = await self._answered(stable)
            answered = await self._answered(candidate)
        except WeightsRefused as error:
            return refused(f"its weights are refused: {error.message}")
        reward, rewards = await self._compare_rewards(answered, before)
        examined = GateMeasurements(
            change=change.relative,
            change_norm=change.norm,
            stable_version=0 if stable is None else stable.version,
            candidate=answered.measures,
            stable=before.measures,
            reward=reward,
            rewards=rewards,
        )
        return judge(examined, self._settings)

    def _change_of(self, reference: WeightsReference) -> WeightDelta:
        folder: Path
        _, folder = self._store.fetch(reference)
        check_finite(folder)
        return self._distance.of(folder)

    async def _answered(self, version: Version | None) -> MeasuredAnswers:
        """Return the answers of a version (None: the base model), asking for unknown ones."""
        number = 0 if version is None else version.version
        if number not in self._known:
            answers = await self._answers_of(version)
            references = await self._reference_logprobs(
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
            measures = measure(answers, references, self._questions.special_ids)
            self._known[number] = MeasuredAnswers(answers=answers, measures=measures)
            self._heard = {key: heard for key, heard in self._heard.items() if key[0] != number}
            while len(self._known) > KEPT:
                del self._known[next(iter(self._known))]
        # Moved to the end, so that what is still compared with is dropped last.
        self._known[number] = self._known.pop(number)
        return self._known[number]

    async def _answers_of(self, version: Version | None) -> Sequence[SampledAnswer]:
        if version is None:
            return await self._ask(0, None)
        if self._local_answers is None:
            await self._generation.load(version.reference)
            return await self._ask(version.version, version.reference)
        answered = await asyncio.to_thread(self._local_answers.of_version, version.version)
        # The stable version can be asked; a candidate without saved answers is held.
        return await self._ask(version.version, None) if answered is None else answered

    async def _ask(self, version: int, reference: WeightsReference | None) -> list[SampledAnswer]:
        room = asyncio.Semaphore(self._settings.concurrency)

        async def ask(number: int) -> SampledAnswer:
            question = PromptRequest(
                completion_id=f"gate-{version}-{number}",
                row=self._questions.rows[number],
                sampling=SamplingParameters(
                    temperature=0.0, max_tokens=self._settings.max_tokens, seed=0
                ),
                source=RolloutSource.EVAL,
                policy_version=version,
                recorded=False,
            )
            async with room:
                if (version, number) not in self._heard:
                    self._heard[version, number] = await self._answer(question, reference)
            return self._heard[version, number]

        return await _all(ask(number) for number in range(len(self._questions.rows)))

    async def _answer(
        self, question: PromptRequest, reference: WeightsReference | None
    ) -> SampledAnswer:
        """Return the answer; a replica that lacks the version is told to load it."""
        for _ in range(ATTEMPTS):
            try:
                return await self._generation.answer(question, ANSWER_SECONDS)
            except NotFound:
                if reference is None:
                    raise
                await self._generation.load(reference)
        return await self._generation.answer(question, ANSWER_SECONDS)

    async def _compare_rewards(
        self, candidate: MeasuredAnswers, stable: MeasuredAnswers
    ) -> tuple[PairedDifference | None, dict[str, Any]]:
        """Score both versions' answers to a prompt in one call, so by the same scorers."""
        scored = await _all(
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


async def _all(calls: Any) -> list[Any]:
    """Return the results in order; after a failure await the other calls, then raise it."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    if not results:
        raise Unavailable("the gate has no prompts to ask")
    return results
