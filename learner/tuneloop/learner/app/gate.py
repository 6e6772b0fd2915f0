"""Build the gate from the learner's settings."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tuneloop.learner.clients.generation import GenerationClient
from tuneloop.learner.clients.reward import RewardClient
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.loop import Loop
from tuneloop.learner.model_thread import ModelThread
from tuneloop.learner.release.gate.controller import CanaryTrial, GateController
from tuneloop.learner.release.gate.evaluator import CandidateEvaluator
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
