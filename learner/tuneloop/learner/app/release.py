"""The gate's and the canary's parts, put together from the learner's settings."""

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tuneloop.bus import Bus
from tuneloop.errors import TuneloopError
from tuneloop.learner.clients.generation import GenerationClient
from tuneloop.learner.clients.reward import RewardClient
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.loop import Loop
from tuneloop.learner.model_thread import ModelThread
from tuneloop.learner.release.canary.controller import CanaryController, VersionRelease
from tuneloop.learner.release.gate.controller import CanaryTrial, GateController
from tuneloop.learner.release.gate.evaluator import CandidateEvaluator
from tuneloop.learner.release.gate.local_answers import LocalAnswers
from tuneloop.learner.release.gate.prompts import GatePrompts
from tuneloop.learner.release.gate.weight_delta import BaseDistance
from tuneloop.learner.release.promotion import Promotion
from tuneloop.learner.samples import ModelRole, TokenSequence
from tuneloop.learner.settings import LearnerSettings
from tuneloop.learner.trainer.base import Trainer
from tuneloop.policies import WeightsKind
from tuneloop.rpc.channel import connect
from tuneloop.weights.store import WeightStore

if TYPE_CHECKING:
    from tuneloop.learner.release.gate.local_answers import LocalAnswers


def make_gate(
    settings: LearnerSettings,
    *,
    database: Database,
    release: Promotion,
    store: WeightStore,
    questions: GatePrompts | None,
    local_answers: "LocalAnswers | None",
    canary: CanaryTrial | None,
    loop: Loop,
    worker: ModelThread,
) -> GateController | None:
    """Build the gate; None without prompts for it. Call this inside the event loop."""
    if questions is None:
        return None
    trainer = next(
        training_run.trainer
        for training_run, _ in loop.training_runs
        if training_run.model == ModelRole.POLICY
    )

    async def reference_logprobs(sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        return await worker.run(trainer.reference_logprobs, sequences)

    return GateController(
        database=database,
        release=release,
        evaluator=CandidateEvaluator(
            generation=GenerationClient(
                connect(settings.generation_address, settings.grpc_tls), settings.policy
            ),
            scoring=RewardClient(connect(settings.reward_address, settings.grpc_tls)),
            store=store,
            distance=BaseDistance(settings.model, settings.weights_kind),
            questions=questions,
            reference_logprobs=reference_logprobs,
            local_answers=local_answers,
            settings=settings.gate,
        ),
        settings=settings.gate,
        canary=canary,
        pause=lambda: loop.pause(True),
    )


def make_local_answers(
    settings: LearnerSettings, questions: GatePrompts | None, trainer: Trainer
) -> "LocalAnswers | None":
    """Build what saves the answers of full weights; None without a gate, and for LoRA."""
    if questions is None or settings.weights_kind is not WeightsKind.FULL:
        return None
    # This imports torch.
    from tuneloop.learner.release.gate.local_answers import LocalAnswers
    from tuneloop.learner.trainer.policy import PolicyTrainer

    if not isinstance(trainer, PolicyTrainer):
        raise AssertionError("the policy's trainer can be asked")
    return LocalAnswers(
        settings.data_dir / "rehearsals",
        trainer,
        [row.asked.token_ids for row in questions.rows],
        settings.gate.max_tokens,
    )


logger = logging.getLogger("tuneloop.learner.app")
RETRY_SECONDS = 5.0


def make_canary(
    settings: LearnerSettings, *, bus: Bus, database: Database, release: VersionRelease
) -> CanaryController:
    """Build the canary controller. Call this inside the event loop."""
    addresses = [settings.generation_address]
    if settings.canary.address:
        addresses.append(settings.canary.address)
    return CanaryController(
        policy=settings.policy,
        bus=bus,
        database=database,
        release=release,
        generation=[
            GenerationClient(connect(address, settings.grpc_tls), settings.policy)
            for address in addresses
        ],
        settings=settings.canary,
    )


async def end_left_over(canary: CanaryController) -> None:
    """End the trial that an earlier run left, now that canaries are off."""
    while canary.version is not None:
        try:
            await canary.stop("new versions are not tried on users any more")
        except TuneloopError as error:
            logger.warning("a canary of an earlier run goes on: %s", error.message)
            await asyncio.sleep(RETRY_SECONDS)
