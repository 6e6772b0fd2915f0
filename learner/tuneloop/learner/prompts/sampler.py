"""Sample answers to the learner's own prompts while users leave generation idle.

Every version answers the eval prompts, the newest first. Then the prompts to learn from are asked,
round after round, at most `prompts_in_flight` ahead of the learner. Nothing new is asked while a
user is being answered. The rollouts come back over the bus like any other.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from secrets import token_hex
from typing import Protocol

from tuneloop.errors import NotFound, TuneloopError
from tuneloop.learner import metrics
from tuneloop.learner.clients.generation import PromptRequest
from tuneloop.learner.ledger.accounting import lineage
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.queue import prompts as prompted
from tuneloop.learner.ledger.reports import evaluations
from tuneloop.learner.prompts.prompt_sets import Prompts, sha256_of, shuffled
from tuneloop.policies import ServedPolicy, WeightsKind
from tuneloop.rollouts import RolloutSource, SamplingParameters

logger = logging.getLogger("tuneloop.learner.prompts")

POLL_SECONDS = 0.5
RETRY_SECONDS = 5.0
LOST_SECONDS = 60.0
"""After this long, an answer that never came over the bus is asked for again."""
POSITION = "prompts asked"
"""The ledger's fact that counts the prompts asked."""


class GenerationService(Protocol):
    """The generation service; see `tuneloop.learner.clients.generation`."""

    async def policy(self) -> ServedPolicy:
        """Return what is served and held now."""
        ...

    async def ask(self, question: PromptRequest) -> None:
        """Have a prompt answered."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSamplerOptions:
    """How to sample, and how much at once."""

    sampling: SamplingParameters
    """For rollouts to learn from; `n` are sampled for each prompt."""
    seed: int
    in_flight: int
    concurrency: int
    max_staleness: int


class PromptSampler:
    """Asks for rollouts until cancelled."""

    def __init__(
        self,
        *,
        generation: GenerationService,
        database: Database,
        prompts: Prompts,
        options: PromptSamplerOptions,
        learning: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`learning` says whether rollouts to learn from are wanted now."""
        self._generation = generation
        self._database = database
        self._prompts = prompts
        self._options = options
        self._learning = learning
        self._clock = clock
        self._running: set[asyncio.Task[None]] = set()
        self._asked: dict[str, float] = {}
        """When each prompt was asked whose answer is not in the ledger yet."""
        self._gone: set[int] = set()
        """Versions that were unloaded before they answered the eval prompts."""
        position = int(database.fact(POSITION) or 0)
        self._order = shuffled(max(1, len(prompts.training)), options.seed, position)

    async def run(self) -> None:
        """Ask until cancelled; a service that is down is asked again later."""
        away = False
        try:
            while True:
                try:
                    await self._turn()
                    away = False
                except TuneloopError as error:
                    if not away:
                        logger.info("prompts wait for generation: %s", error.message)
                    away = True
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            for task in self._running:
                task.cancel()

    async def _turn(self) -> None:
        """Ask one prompt if there is room for it, else wait a little."""
        question = None
        if len(self._running) < self._options.concurrency:
            question = await self._next_question(await self._generation.policy())
        if question is None:
            await self._wait()
            return
        self._asked[question.completion_id] = self._clock()
        task = asyncio.create_task(self._answer(question), name=question.completion_id)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _wait(self) -> None:
        waiting = set(self._running) if len(self._running) >= self._options.concurrency else set()
        if waiting:
            await asyncio.wait(waiting, timeout=POLL_SECONDS, return_when="FIRST_COMPLETED")
        else:
            await asyncio.sleep(POLL_SECONDS)

    async def _answer(self, question: PromptRequest) -> None:
        try:
            await self._generation.ask(question)
            metrics.prompts_asked.labels(question.source.value).inc()
        except NotFound:
            # The version was unloaded in the meantime.
            if question.policy_version is not None:
                self._gone.add(question.policy_version)
        except TuneloopError as error:
            # It counts as asked for a while, so that a prompt that fails is not retried at once.
            logger.info("%s was not answered: %s", question.completion_id, error.message)

    async def _next_question(self, policy: ServedPolicy) -> PromptRequest | None:
        requests = sum(policy.leases.values())
        if requests > len(self._running):
            return None  # users come first
        await asyncio.to_thread(self._forget_answered)
        evaluation = await asyncio.to_thread(self._next_evaluation, policy)
        if evaluation is not None or not self._prompts.training or not self._learning():
            return evaluation
        return await asyncio.to_thread(self._next_prompt, policy.policy_version)

    def _forget_answered(self) -> None:
        """Drop the prompts whose answers are in the ledger or were lost."""
        arrived = prompted.recorded(self._database, set(self._asked))
        lost = self._clock() - LOST_SECONDS
        running = {task.get_name() for task in self._running}
        self._asked = {
            name: asked
            for name, asked in self._asked.items()
            if name in running or (name not in arrived and asked > lost)
        }

    def _next_evaluation(self, policy: ServedPolicy) -> PromptRequest | None:
        """Return an eval prompt that a loaded version has not answered, newest version first."""
        if not self._prompts.evaluation:
            return None
        held = {policy.policy_version}
        if policy.weights_kind == WeightsKind.LORA:
            held |= set(policy.leases)
        for version in sorted(held - self._gone, reverse=True):
            answered = evaluations.answered(self._database, version)
            for number, row in enumerate(self._prompts.evaluation):
                completion_id = f"eval-{policy.name}-{version}-{sha256_of(row)[:16]}"
                if completion_id in answered or completion_id in self._asked:
                    continue
                return PromptRequest(
                    completion_id=completion_id,
                    row=row,
                    sampling=self._evaluation_sampling(number),
                    source=RolloutSource.EVAL,
                    policy_version=version,
                )
        return None

    def _evaluation_sampling(self, number: int) -> SamplingParameters:
        """Use the same seed for every version, so that differences are the version's."""
        sampling = self._options.sampling
        return SamplingParameters(
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            seed=self._options.seed + number,
        )

    def _next_prompt(self, serving: int) -> PromptRequest | None:
        fresh = lineage.fresh_versions(self._database, self._options.max_staleness)
        waiting = prompted.outstanding(self._database, serving, {serving, *fresh})
        asked = sum(name.startswith("prompt-") for name in self._asked)
        if waiting + asked >= self._options.in_flight:
            return None
        position, index = next(self._order)
        self._database.set_fact(POSITION, str(position + 1))
        return PromptRequest(
            completion_id=f"prompt-{token_hex(16)}",
            row=self._prompts.training[index],
            sampling=self._options.sampling,
            source=RolloutSource.PROMPTS,
        )
