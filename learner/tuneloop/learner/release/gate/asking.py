"""Ask generation the gate's prompts, many at once while no user waits, and few while one does."""

import asyncio
from typing import Any, Protocol

from tuneloop.errors import NotFound, Unavailable
from tuneloop.learner.clients.generation import PromptRequest
from tuneloop.learner.release.gate.prompts import GatePrompts
from tuneloop.learner.release.gate.settings import GateSettings
from tuneloop.learner.samples import SampledAnswer
from tuneloop.policies import ServedPolicy, WeightsReference
from tuneloop.rollouts import RolloutSource, SamplingParameters

ANSWER_SECONDS = 180.0
ATTEMPTS = 4
"""Attempts to get an answer, as the replica asked may not hold the version."""
USERS_TO_A_PROMPT = 4
"""Users' requests beside which one more prompt is answered: each makes their steps a little longer,
and one at a time would make the gate take minutes while many chat."""
POLL_SECONDS = 0.2


class AnswersPrompts(Protocol):
    """The generation service; see `tuneloop.learner.clients.generation`."""

    async def load(self, weights: WeightsReference) -> None:
        """Have a version held without serving it."""
        ...

    async def policy(self) -> ServedPolicy:
        """Return what is served and held now, and how many requests run on each version."""
        ...

    async def answer(self, question: PromptRequest, seconds: float) -> SampledAnswer:
        """Return the answer to a question, within `seconds`."""
        ...


class GateAsker:
    """Asks versions the gate's prompts at temperature 0; an answer is asked for once."""

    def __init__(
        self, generation: AnswersPrompts, questions: GatePrompts, settings: GateSettings
    ) -> None:
        self._generation = generation
        self._questions = questions
        self._settings = settings
        self._running = 0
        self._entering = asyncio.Lock()
        self._heard: dict[tuple[int, int], SampledAnswer] = {}
        """Answers by version and question, of versions that have not answered all of them."""

    async def ask(self, version: int, reference: WeightsReference | None) -> list[SampledAnswer]:
        """Return a version's answers in the order of the prompts.

        With a `reference` the version is loaded first. Raises `TuneloopError` after a failure; what
        was answered until then is not asked again.
        """
        if reference is not None:
            await self._generation.load(reference)
        answers = await complete_all(
            self._ask(version, number, reference) for number in range(len(self._questions.rows))
        )
        self._heard = {key: heard for key, heard in self._heard.items() if key[0] != version}
        return answers

    async def _ask(
        self, version: int, number: int, reference: WeightsReference | None
    ) -> SampledAnswer:
        if (version, number) in self._heard:
            return self._heard[version, number]
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
        async with self._entering:
            await self._wait_for_room()
            self._running += 1
        try:
            self._heard[version, number] = await self._answer(question, reference)
        finally:
            self._running -= 1
        return self._heard[version, number]

    async def _wait_for_room(self) -> None:
        """Wait until another prompt may be asked: the more users wait, the more ask beside them."""
        while self._running:
            users = sum((await self._generation.policy()).leases.values()) - self._running
            beside = max(1, users // USERS_TO_A_PROMPT) if users > 0 else self._settings.concurrency
            if self._running < min(beside, self._settings.concurrency):
                return
            await asyncio.sleep(POLL_SECONDS)

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


async def complete_all(calls: Any) -> list[Any]:
    """Return the results in order; after a failure await the other calls, then raise it."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    if not results:
        raise Unavailable("the gate has no prompts to ask")
    return results
