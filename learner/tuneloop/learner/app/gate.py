"""The gate's parts, put together from the learner's settings."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tuneloop.learner.clients.generation import Generation
from tuneloop.learner.clients.reward import Scoring
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.loop import Loop
from tuneloop.learner.model_thread import Worker
from tuneloop.learner.release.gate.controller import Canary, Gatekeeper
from tuneloop.learner.release.gate.evaluator import Examiner
from tuneloop.learner.release.gate.prompts import Questions
from tuneloop.learner.release.gate.weight_delta import Distance
from tuneloop.learner.release.promotion import Release
from tuneloop.learner.samples import TokenSequence
from tuneloop.learner.settings import LearnerSettings
from tuneloop.learner.trainer.base import Trainer
from tuneloop.policies import WeightsKind
from tuneloop.rpc.channel import connect
from tuneloop.weights.store import WeightStore

if TYPE_CHECKING:
    from tuneloop.learner.release.gate.local_answers import Rehearsals


def make_gatekeeper(
    settings: LearnerSettings,
    *,
    database: Database,
    release: Release,
    store: WeightStore,
    questions: Questions | None,
    rehearsals: "Rehearsals | None",
    canary: Canary | None,
    loop: Loop,
    worker: Worker,
) -> Gatekeeper | None:
    """What decides about candidates; None without questions. Call it inside the event loop."""
    if questions is None:
        return None
    trainer = next(trainee.trainer for trainee, _ in loop.trainees if trainee.model == "policy")

    async def reference_logprobs(sequences: Sequence[TokenSequence]) -> list[tuple[float, ...]]:
        return await worker.run(trainer.reference_logprobs, sequences)

    return Gatekeeper(
        database=database,
        release=release,
        examiner=Examiner(
            generation=Generation(
                connect(settings.generation_address, settings.grpc_tls), settings.policy
            ),
            scoring=Scoring(connect(settings.reward_address, settings.grpc_tls)),
            store=store,
            distance=Distance(settings.model, settings.weights_kind),
            questions=questions,
            reference_logprobs=reference_logprobs,
            rehearsals=rehearsals,
            settings=settings.gate,
        ),
        settings=settings.gate,
        canary=canary,
        pause=lambda: loop.pause(True),
    )


def make_rehearsals(
    settings: LearnerSettings, questions: Questions | None, trainer: Trainer
) -> "Rehearsals | None":
    """What takes down the answers of full weights; None without a gate, and for LoRA."""
    if questions is None or settings.weights_kind is not WeightsKind.FULL:
        return None
    # torch comes in here.
    from tuneloop.learner.release.gate.local_answers import Rehearsals
    from tuneloop.learner.trainer.policy import PolicyTraining

    if not isinstance(trainer, PolicyTraining):
        raise AssertionError("the policy's trainer can be asked")
    return Rehearsals(
        settings.data_dir / "rehearsals",
        trainer,
        [row.asked.token_ids for row in questions.rows],
        settings.gate.max_tokens,
    )
