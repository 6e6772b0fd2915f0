"""The models that learn, loaded from the learner's settings."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from tuneloop.generation.prompts import Tokenization
from tuneloop.learner.batching.batch import Batcher
from tuneloop.learner.batching.batcher import PolicyBatcher, RewardBatcher
from tuneloop.learner.data.tokenize import EditTokenizer
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.loop import Loop
from tuneloop.learner.model_thread import ModelThread
from tuneloop.learner.monitoring.follow_ups import (
    EndpointJudge,
    FollowUpJudge,
    FollowUps,
    PolicyJudge,
)
from tuneloop.learner.release.publisher import BaseModel
from tuneloop.learner.samples import ModelRole
from tuneloop.learner.settings import LearnerSettings
from tuneloop.learner.trainer.base import Trainer
from tuneloop.learner.training_run import TrainingRun
from tuneloop.policies import WeightsKind
from tuneloop.reward.scorers.judge_client import Endpoint, EndpointSettings
from tuneloop.weights.shapes import base_model_sha256

if TYPE_CHECKING:
    from tuneloop.learner.models.world import World


def join_ranks(memory_gib: float | None) -> "World":
    """Return the ranks that torchrun started, which follow this one.

    Beyond `memory_gib` of its GPU an allocation fails, also while more is free: another process has
    the rest.
    """
    # These import torch.
    from tuneloop.learner.models.world import join, limit_gpu_memory

    world = join()
    if memory_gib is not None:
        limit_gpu_memory(memory_gib)
    return world


def describe_base_models(settings: LearnerSettings) -> dict[str, BaseModel]:
    """Return what version 0 of each model is, from the headers of its files."""
    found: dict[str, BaseModel] = {
        ModelRole.POLICY: BaseModel(
            name=settings.base_model,
            sha256=base_model_sha256(settings.model),
            kind=settings.weights_kind,
        )
    }
    if settings.reward_model is not None:
        found[ModelRole.REWARD_MODEL] = BaseModel(
            name=settings.reward_model.name,
            sha256=base_model_sha256(settings.reward_model),
            kind=WeightsKind.FULL,
        )
    return found


async def make_training_runs(
    settings: LearnerSettings, database: Database, worker: ModelThread, world: "World"
) -> list[tuple[TrainingRun, Batcher]]:
    """Load the models, in the thread that will train them."""
    # This imports torch and transformers.
    from tuneloop.learner.trainer.policy import PolicyTrainer

    def training_run(
        model: str, name: str, build: Callable[[], Trainer], kind: WeightsKind
    ) -> TrainingRun:
        return TrainingRun(
            model=model,
            policy=name,
            trainer=build(),
            database=database,
            checkpoints=settings.data_dir / "checkpoints" / model,
            keep_checkpoints=settings.keep_checkpoints,
            # An adapter's is written at once; several ranks write theirs together.
            beside=kind is WeightsKind.FULL and world.size == 1,
        )

    def policy_trainer() -> Trainer:
        return PolicyTrainer(
            settings.model, settings.trainer(), world, base_model=settings.base_model
        )

    kind = settings.weights_kind
    policy = await worker.run(training_run, ModelRole.POLICY, settings.policy, policy_trainer, kind)
    edit_tokens = await worker.run(EditTokenizer, settings.model)
    batches = PolicyBatcher(database, settings, edit_tokens=edit_tokens)
    made: list[tuple[TrainingRun, Batcher]] = [(policy, batches)]
    backbone = settings.reward_model
    if backbone is not None:
        from tuneloop.learner.trainer.reward_model import RewardTrainer

        def reward_trainer() -> Trainer:
            return RewardTrainer(backbone, settings.reward_trainer())

        name = f"{settings.policy}-reward-model"
        role, kind = ModelRole.REWARD_MODEL, settings.reward_trainer().kind
        reward_model = await worker.run(training_run, role, name, reward_trainer, kind)
        made.append((reward_model, RewardBatcher(database, settings)))
    return made


async def make_follow_ups(
    settings: LearnerSettings, database: Database, loop: Loop, worker: ModelThread
) -> FollowUps | None:
    """Make what has follow-ups judged; None where they are not."""
    if settings.follow_ups == "off":
        return None
    tokenization = await asyncio.to_thread(Tokenization, settings.model)
    return FollowUps(
        database,
        _judge_of_follow_ups(settings, loop, worker, tokenization),
        tokenization,
        learned=settings.signals == "reward_model",
        hints=settings.comments == "train",
    )


def _judge_of_follow_ups(
    settings: LearnerSettings, loop: Loop, worker: ModelThread, tokenization: Tokenization
) -> FollowUpJudge:
    chosen = settings.follow_up_judge
    if not chosen.url:
        trainer = loop.training_runs[0][0].trainer
        return PolicyJudge(trainer, tokenization, worker, idle=lambda: loop.state == "waiting")
    key = "" if chosen.api_key is None else chosen.api_key.get_secret_value()
    endpoint = EndpointSettings(url=chosen.url, model=chosen.model, api_key=key)
    return EndpointJudge(Endpoint(endpoint), chosen.votes)
