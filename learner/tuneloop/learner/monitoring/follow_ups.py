"""Judge what users wrote after answers, beside training.

The base model judges in the trainer, a few at a time, while nothing else waits for the models. A
model behind an endpoint is asked from here. A judge that is away is asked again later; any other
failure means that those follow-ups have no label.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

from tuneloop.backoff import Backoff
from tuneloop.errors import InvalidRequest, SettingsError, TuneloopError, Unavailable
from tuneloop.generation.prompts import Tokenization
from tuneloop.host import steady_time
from tuneloop.learner import metrics
from tuneloop.learner.data.follow_ups import (
    LABELS,
    NOTHING,
    label_sequences,
    problem_of_follow_up,
    task_about,
    verdict_of,
    verdict_of_votes,
)
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events.follow_up_rules import (
    FollowUp,
    Verdict,
    record_verdicts,
    waiting,
)
from tuneloop.learner.model_thread import ModelThread
from tuneloop.learner.trainer.base import Trainer
from tuneloop.reward.scorers.judge_client import Endpoint

logger = logging.getLogger("tuneloop.learner.monitoring")

AT_ONCE = 4
"""Follow-ups in one request, so that no step waits long for them."""
EVERY_SECONDS = 1.0
FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 600.0
"""After a judge that was away."""


class FollowUpJudge(Protocol):
    """Labels follow-ups."""

    @property
    def ready(self) -> bool:
        """Whether it may be asked now."""
        ...

    async def judge(self, asked: Sequence[FollowUp]) -> list[Verdict]:
        """Return a verdict of each, in order. Raises `Unavailable` where it is away."""
        ...


class PolicyJudge:
    """The base model of the policy, by the likelihood of each label."""

    def __init__(
        self,
        trainer: Trainer,
        tokenization: Tokenization,
        worker: ModelThread,
        *,
        idle: Callable[[], bool] = lambda: True,
    ) -> None:
        """`idle` says whether no step is being taken and no version made."""
        self._trainer = trainer
        self._tokenization = tokenization
        self._worker = worker
        self._idle = idle

    @property
    def ready(self) -> bool:
        """Whether nothing else is done with the models."""
        return self._idle() and not self._worker.busy

    async def judge(self, asked: Sequence[FollowUp]) -> list[Verdict]:
        """See `FollowUpJudge.judge`."""
        return await self._worker.run(self.verdicts, asked)

    def verdicts(self, asked: Sequence[FollowUp]) -> list[Verdict]:
        """Return a verdict of each; runs in the trainer's thread."""
        found = self._logprobs(asked)
        without = self._without_content
        return [
            Verdict(label=None, note="too long for the model")
            if logprobs is None or without is None
            else verdict_of(logprobs, without)
            for logprobs in found
        ]

    @cached_property
    def _without_content(self) -> list[float] | None:
        return self._logprobs([NOTHING])[0]

    def _logprobs(self, asked: Sequence[FollowUp]) -> list[list[float] | None]:
        """Return the log-probs of the labels, of each that fits the model."""
        sequences = [s for one in asked for s in label_sequences(self._tokenization, one)]
        found = self._trainer.reference_logprobs(sequences)
        groups = [found[i : i + len(LABELS)] for i in range(0, len(found), len(LABELS))]
        return [[sum(row) for row in group] if all(group) else None for group in groups]


class EndpointJudge:
    """A model behind an OpenAI-compatible endpoint, by votes. It must not learn from them."""

    ready = True

    def __init__(self, endpoint: Endpoint, votes: int) -> None:
        self._endpoint = endpoint
        self._votes = votes

    async def judge(self, asked: Sequence[FollowUp]) -> list[Verdict]:
        """See `FollowUpJudge.judge`."""
        return await asyncio.gather(*map(self._verdict, asked))

    async def _verdict(self, follow_up: FollowUp) -> Verdict:
        task = [{"role": "user", "content": task_about(follow_up)}]
        try:
            replies = await asyncio.gather(
                *(self._endpoint.complete(task) for _ in range(self._votes))
            )
        except InvalidRequest as error:
            return Verdict(label=None, note=error.message)
        except SettingsError as error:
            # A wrong key or model: somebody has to put it right.
            raise Unavailable(error.message) from error
        return verdict_of_votes(replies)


class FollowUps:
    """Has follow-ups judged, the newest first, each once."""

    def __init__(
        self,
        database: Database,
        judge: FollowUpJudge,
        tokenization: Tokenization,
        *,
        learned: bool,
        hints: bool,
        clock: Callable[[], float] = steady_time,
    ) -> None:
        """`learned` and `hints` are those of `record_verdicts`."""
        self._database = database
        self._judge = judge
        self._tokenization = tokenization
        self._learned = learned
        self._hints = hints
        self._clock = clock

    async def run(self) -> None:
        """Judge until cancelled. Raises `Unavailable` while the ledger is away."""
        pauses = Backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        while True:
            judged = await self.judge_some() if self._judge.ready else 0
            if judged is None:
                await asyncio.sleep(pauses.next_delay())
                continue
            if judged:
                pauses.reset()
            await asyncio.sleep(EVERY_SECONDS if judged < AT_ONCE else 0)

    async def judge_some(self) -> int | None:
        """Have a few judged; return how many, None if the judge is away."""
        asked = await asyncio.to_thread(waiting, self._database, AT_ONCE)
        verdicts: dict[str, Verdict] = {}
        fit: list[FollowUp] = []
        for one in asked:
            problem = problem_of_follow_up(self._tokenization, one.text)
            if problem is None:
                fit.append(one)
            else:
                verdicts[one.completion_id] = Verdict(label=None, note=problem)
        away = False
        try:
            found = await self._judge.judge(fit) if fit else []
        except Unavailable as error:
            metrics.follow_up_judge_failures.inc()
            logger.warning("follow-ups wait for their judge: %s", error)
            found, away = [], True
        except (TuneloopError, RuntimeError, ValueError, MemoryError) as error:
            metrics.follow_up_judge_failures.inc()
            logger.exception("%d follow-ups get no label", len(fit))
            found = [Verdict(label=None, note=f"the judge failed: {error}")] * len(fit)
        if not away:
            verdicts |= {o.completion_id: v for o, v in zip(fit, found, strict=True)}
        await asyncio.to_thread(self._record, verdicts)
        return None if away else len(asked)

    def _record(self, verdicts: dict[str, Verdict]) -> None:
        record_verdicts(
            self._database, verdicts, self._clock(), learned=self._learned, hints=self._hints
        )
        for verdict in verdicts.values():
            metrics.follow_ups_judged.labels(verdict.label or "nothing").inc()
