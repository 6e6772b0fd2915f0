"""The gate's and the canary's parts, put together from the learner's settings."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tuneloop.bus import Bus
from tuneloop.errors import SettingsError, TuneloopError
from tuneloop.learner import metrics
from tuneloop.learner.clients.generation import GenerationClient
from tuneloop.learner.clients.reward import RewardClient
from tuneloop.learner.ledger.accounting import decisions, steps
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.loop import Loop
from tuneloop.learner.model_thread import ModelThread
from tuneloop.learner.release.canary.controller import CanaryController, VersionRelease
from tuneloop.learner.release.gate.controller import CanaryTrial, GateController
from tuneloop.learner.release.gate.evaluator import CandidateEvaluator
from tuneloop.learner.release.gate.local_answers import LocalAnswers
from tuneloop.learner.release.gate.prompts import GatePrompts
from tuneloop.learner.release.gate.suites import KeptScores
from tuneloop.learner.release.gate.weight_delta import BaseDistance
from tuneloop.learner.release.promotion import Promotion
from tuneloop.learner.samples import ModelRole, TokenSequence
from tuneloop.learner.settings import LearnerSettings
from tuneloop.learner.trainer.base import Trainer
from tuneloop.rpc.channel import connect_to
from tuneloop.weights.store import WeightStore

if TYPE_CHECKING:
    from tuneloop.learner.release.gate.scoring import SuiteScorer

BeforePublishing: TypeAlias = Callable[[int, Path], None]


def make_gate(
    settings: LearnerSettings,
    *,
    database: Database,
    release: Promotion,
    store: WeightStore,
    questions: GatePrompts | None,
    local_answers: LocalAnswers | None,
    canary: CanaryTrial | None,
    loop: Loop,
    worker: ModelThread,
) -> GateController | None:
    """Build the gate; None without prompts for it. Call this inside the event loop."""
    if questions is None or local_answers is None:
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
                connect_to(settings, settings.generation_address), settings.policy
            ),
            scoring=RewardClient(connect_to(settings, settings.reward_address)),
            store=store,
            distance=BaseDistance(settings.model, settings.weights_kind),
            questions=questions,
            reference_logprobs=reference_logprobs,
            local_answers=local_answers,
            suites=kept_scores(settings) if has_suites(settings) else None,
            examined=lambda: decisions.count(database, ModelRole.POLICY, "gate", ("pass", "fail")),
            evidence=lambda candidate, stable: steps.evidence_since(database, candidate, stable),
            settings=settings.gate,
        ),
        settings=settings.gate,
        canary=canary,
        pause=lambda: loop.pause(True),
    )


def make_local_answers(
    settings: LearnerSettings, questions: GatePrompts | None, trainer: Trainer
) -> LocalAnswers | None:
    """Build what saves the versions' answers to the gate's prompts; None without a gate."""
    if questions is None:
        return None
    # This imports torch.
    from tuneloop.learner.trainer.policy import PolicyTrainer

    if not isinstance(trainer, PolicyTrainer):
        raise AssertionError("the policy's trainer can be asked")
    return LocalAnswers(
        settings.data_dir / "rehearsals",
        trainer,
        [row.asked.token_ids for row in questions.rows],
        settings.gate.max_tokens,
    )


def has_suites(settings: LearnerSettings) -> bool:
    """Return whether there is a gate that scores suites."""
    gate = settings.gate
    some = gate.abilities or gate.suites or gate.lm_eval_tasks
    return bool(some) and settings.release in ("gate", "gate+canary")


def kept_scores(settings: LearnerSettings) -> KeptScores:
    """Return where the versions' scores are."""
    return KeptScores(settings.data_dir / "suites")


def make_scorer(settings: LearnerSettings, trainer: Trainer) -> "SuiteScorer | None":
    """Build what scores the suites; None if nothing is scored. Raises `SettingsError`."""
    if not has_suites(settings):
        return None
    # These import torch.
    from tuneloop.learner.abilities.exam import AbilityExam
    from tuneloop.learner.abilities.suite import BUILTIN, load_suite
    from tuneloop.learner.release.gate.lm_eval import LmEvalTasks
    from tuneloop.learner.release.gate.scoring import SuiteScorer
    from tuneloop.learner.trainer.policy import PolicyTrainer

    if not isinstance(trainer, PolicyTrainer):
        raise AssertionError("the policy's trainer can be scored")
    gate = settings.gate
    files = {"abilities": BUILTIN} if gate.abilities else {}
    for path in gate.suites:
        if path.stem in files:
            raise SettingsError(
                f"gate: suites: {path}: there is a suite {path.stem} already; rename the file",
                param="gate",
            )
        files[path.stem] = str(path)
    try:
        exams = {
            name: AbilityExam(load_suite([file]).part(gate.suite_items), settings.model)
            for name, file in files.items()
        }
    except TuneloopError as error:
        raise SettingsError(f"gate: suites: {error.message}", param="gate") from error
    lm_eval = None
    if gate.lm_eval_tasks:
        lm_eval = LmEvalTasks(
            tasks=gate.lm_eval_tasks,
            limit=gate.lm_eval_limit,
            base=settings.model,
            kind=settings.weights_kind,
            device=settings.torch_device,
        )
    return SuiteScorer(exams=exams, trainer=trainer, kept=kept_scores(settings), lm_eval=lm_eval)


def before_publishing(
    trainer: Trainer, local_answers: LocalAnswers | None, scorer: "SuiteScorer | None"
) -> BeforePublishing:
    """Return what is asked of the trainer about a version while it is saved."""
    # This imports torch.
    from tuneloop.learner.trainer.policy import PolicyTrainer

    def ask(version: int, folder: Path) -> None:
        if local_answers is None or not isinstance(trainer, PolicyTrainer):
            return
        with metrics.exam_seconds.time(), trainer.model.merged():
            answers = local_answers.save_answers(version, scorer.prompts if scorer else ())
            if scorer is not None and answers is not None:
                scorer.save_scores(version, folder, answers)

    return ask


def ask_about_base(local_answers: LocalAnswers | None, scorer: "SuiteScorer | None") -> None:
    """Ask the trainer about version 0, if it was not; blocks, in the trainer's thread."""
    if local_answers is not None:
        local_answers.save_base_answers()
    if scorer is not None:
        scorer.score_base()


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
            GenerationClient(connect_to(settings, address), settings.policy)
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
