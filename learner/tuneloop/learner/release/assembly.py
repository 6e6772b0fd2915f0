"""The gate's parts, put together from the learner's settings."""

from collections.abc import Sequence

from tuneloop.learner.asking import Generation
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.loop import Loop
from tuneloop.learner.release.change import Distance
from tuneloop.learner.release.examination import Examiner
from tuneloop.learner.release.gatekeeper import Canary, Gatekeeper
from tuneloop.learner.release.questions import Questions
from tuneloop.learner.release.release import Release
from tuneloop.learner.release.scoring import Scoring
from tuneloop.learner.samples import TokenSequence
from tuneloop.learner.settings import LearnerSettings
from tuneloop.learner.worker import Worker
from tuneloop.rpc.channel import connect
from tuneloop.weights.store import WeightStore


def make_gatekeeper(
    settings: LearnerSettings,
    *,
    database: Database,
    release: Release,
    store: WeightStore,
    questions: Questions | None,
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
            kind=settings.weights_kind,
            settings=settings.gate,
        ),
        settings=settings.gate,
        canary=canary,
        pause=lambda: loop.pause(True),
    )
