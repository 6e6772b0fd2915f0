"""The learner's parts, put together from its settings."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuneloop.bus import Bus
from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.learner.app.canary import end_left_over, make_canary
from tuneloop.learner.app.gate import make_gate, make_local_answers
from tuneloop.learner.batching.batch import Batcher
from tuneloop.learner.batching.batcher import PolicyBatcher, RewardBatcher
from tuneloop.learner.clients.generation import GenerationClient
from tuneloop.learner.data.tokenize import EditTokenizer
from tuneloop.learner.files import fingerprint
from tuneloop.learner.intake.consumers import IntakeConsumer, make_consumers, run_consumers
from tuneloop.learner.intake.importer import Importer
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.queue import prompts as held_out
from tuneloop.learner.ledger.queue import ref_logprobs
from tuneloop.learner.loop import Loop, LoopSchedule
from tuneloop.learner.model_thread import ModelThread
from tuneloop.learner.monitoring.alarm_monitor import AlarmMonitor
from tuneloop.learner.monitoring.expiry import Expiry
from tuneloop.learner.monitoring.gauges import keep_fresh
from tuneloop.learner.monitoring.reference_fill import ReferenceFill
from tuneloop.learner.prompts.prompt_sets import Prompts, load_prompts
from tuneloop.learner.prompts.sampler import PromptSampler, PromptSamplerOptions
from tuneloop.learner.release.canary.controller import CanaryController
from tuneloop.learner.release.gate.controller import GateController
from tuneloop.learner.release.gate.prompts import load_gate_prompts
from tuneloop.learner.release.manifest import trained_with
from tuneloop.learner.release.promotion import Promotion
from tuneloop.learner.release.publisher import BaseModel, Publisher
from tuneloop.learner.samples import ModelRole
from tuneloop.learner.service.servicer import LearnerServicer
from tuneloop.learner.settings import LearnerSettings
from tuneloop.learner.trainer.base import Trainer
from tuneloop.learner.training_run import TrainingRun
from tuneloop.policies import WeightsKind
from tuneloop.rollouts import SamplingParameters
from tuneloop.rpc.channel import connect
from tuneloop.rpc.server import Server
from tuneloop.v1 import learner_pb2_grpc
from tuneloop.weights.filesystem import FilesystemStore
from tuneloop.weights.shapes import base_model_sha256
from tuneloop.weights.signing import Signer, Verifier

if TYPE_CHECKING:
    from tuneloop.learner.models.world import World

logger = logging.getLogger("tuneloop.learner")


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """Everything that runs."""

    policy: str
    bus: Bus
    database: Database
    intakes: list[IntakeConsumer]
    loop: Loop
    server: Server
    prompt_sampler: PromptSampler | None
    gate_controller: GateController | None
    left_over: CanaryController | None
    """What may still be on trial, where canaries are off."""
    expiry: Expiry
    watch: AlarmMonitor
    dismiss: Callable[[], Awaitable[None]]
    """Lets the other ranks end; nothing can be trained then."""

    async def run(self) -> None:
        """Take in, learn and answer until cancelled; whatever fails ends all."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                run_consumers(self.bus, self.policy, self.intakes, self.loop.arrived.set)
            )
            tasks.create_task(self.loop.run())
            tasks.create_task(keep_fresh(self.database, self.loop.progress))
            tasks.create_task(self.expiry.run())
            tasks.create_task(self.watch.run())
            if self.prompt_sampler is not None:
                tasks.create_task(self.prompt_sampler.run())
            if self.gate_controller is not None:
                tasks.create_task(self.gate_controller.run())
            if self.left_over is not None:
                tasks.create_task(end_left_over(self.left_over))

    async def close(self) -> None:
        """Answer no more and disconnect."""
        await self.server.stop()
        await self.bus.close()


async def assemble(settings: LearnerSettings) -> Learner:
    """Open the ledger and the bus, load the models, start answering."""
    policy = settings.policy
    database = await asyncio.to_thread(open_ledger, settings)
    base_models = await asyncio.to_thread(describe_base_models, settings)
    database.belongs_to(
        {
            "policy": policy,
            "base model": base_models["policy"].sha256,
            "kind of weights": settings.weights_kind.value,
        }
    )
    ref_logprobs.keep_for(database, await asyncio.to_thread(fingerprint, settings.model))
    expiry = Expiry(database, max_age=settings.feedback_max_age, rollout_wait=settings.rollout_wait)
    await asyncio.to_thread(expiry.go_on)
    recorder.adopt_scores(database, settings.scored_objective)
    store = FilesystemStore(
        settings.weights_uri,
        verifier=Verifier.from_file(settings.verify_key_file),
        signer=Signer.from_file(settings.signing_key_file),
        cache_dir=settings.data_dir / "weights-cache",
    )
    bus = await JetStreamBus.connect(
        settings.nats_url,
        name="tuneloop-learner",
        access=settings.nats_access,
        replicas=settings.nats_replicas,
    )
    watch = AlarmMonitor(database, settings.guards)
    release = Promotion(
        policy=policy,
        bus=bus,
        database=database,
        gate=settings.release,
        alarm=lambda: watch.holding,
    )
    worker = ModelThread()
    world = await worker.run(join_ranks)
    training_runs = await make_training_runs(settings, database, worker, world)
    prompts = await asyncio.to_thread(load_prompts, settings)
    questions = await asyncio.to_thread(load_gate_prompts, settings, prompts)
    asked = [*prompts.evaluation, *(() if questions is None else questions.rows)]
    held_out.hold_out(database, (row.asked.token_ids for row in asked))
    trainer = training_runs[0][0].trainer
    reference_fill = ReferenceFill(database, trainer)
    local_answers = await asyncio.to_thread(make_local_answers, settings, questions, trainer)
    loop = Loop(
        training_runs=training_runs,
        publisher=Publisher(
            bus=bus,
            store=store,
            database=database,
            release=release,
            outbox=settings.data_dir / "outbox",
            base_models=base_models,
            trained_with=trained_with(settings),
            rehearse=lambda version: None if local_answers is None else local_answers.take(version),
        ),
        database=database,
        bus=bus,
        worker=worker,
        pace=LoopSchedule(
            publish_every_steps=settings.publish_every_steps,
            publish_every_seconds=settings.publish_every_seconds,
            checkpoint_every_steps=settings.checkpoint_every_steps,
        ),
        between_turns=reference_fill.go_on,
        set_aside_after=settings.gate.set_aside_after,
    )
    canary = make_canary(settings, bus=bus, database=database, release=release)
    gate_controller = make_gate(
        settings,
        database=database,
        release=release,
        store=store,
        questions=questions,
        local_answers=local_answers,
        canary=canary if settings.release == "gate+canary" else None,
        loop=loop,
        worker=worker,
    )
    server = Server(
        host=settings.host, port=settings.port, tls=settings.grpc_tls, drain_seconds=1.0
    )
    servicer = LearnerServicer(
        policy=policy,
        database=database,
        loop=loop,
        release=release,
        bus=bus,
        importer=Importer(database, policy, settings.model),
        gate=lambda: "" if gate_controller is None else gate_controller.waiting,
        watch=watch,
    )
    server.add(learner_pb2_grpc.add_LearnerServiceServicer_to_server, servicer)
    await server.start()
    await server.set_serving(True)
    return Learner(
        policy=policy,
        bus=bus,
        database=database,
        intakes=make_consumers(
            database,
            policy,
            scored_objective=settings.scored_objective,
            all_scores_count=settings.uninformative_scores,
        ),
        loop=loop,
        server=server,
        prompt_sampler=make_prompt_sampler(settings, database, prompts, loop),
        gate_controller=gate_controller,
        left_over=None if settings.release == "gate+canary" else canary,
        expiry=expiry,
        watch=watch,
        dismiss=lambda: worker.run(world.dismiss),
    )


def open_ledger(settings: LearnerSettings) -> Database:
    """The ledger to write; raises `SettingsError`, `FailedPrecondition`, `Unavailable`."""
    if settings.ledger_url is None:
        return Database.at(settings.data_dir / "ledger.db")
    return Database(settings.ledger_url.get_secret_value(), writer=True)


def join_ranks() -> "World":
    """The ranks that torchrun started, which follow this one."""
    # torch comes in here.
    from tuneloop.learner.models.world import join

    return join()


def make_prompt_sampler(
    settings: LearnerSettings, database: Database, prompts: Prompts, loop: Loop
) -> PromptSampler | None:
    """What asks the learner's own prompts; None without any. Call it inside the event loop."""
    if not (prompts.training or prompts.evaluation):
        return None
    return PromptSampler(
        generation=GenerationClient(
            connect(settings.generation_address, settings.grpc_tls), settings.policy
        ),
        database=database,
        prompts=prompts,
        options=PromptSamplerOptions(
            sampling=SamplingParameters(
                temperature=settings.prompt_temperature,
                max_tokens=settings.prompt_max_tokens,
                n=settings.samples_per_prompt,
            ),
            seed=settings.seed,
            in_flight=settings.prompts_in_flight,
            concurrency=settings.prompt_concurrency,
            max_staleness=settings.max_staleness,
        ),
        learning=lambda: not loop.paused and settings.weight_of(settings.scored_objective) > 0,
    )


def describe_base_models(settings: LearnerSettings) -> dict[str, BaseModel]:
    """What version 0 of each model is; reads their files' headers."""
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
    # torch and transformers come in here.
    from tuneloop.learner.trainer.policy import PolicyTrainer

    def training_run(model: str, name: str, build: Callable[[], Trainer]) -> TrainingRun:
        return TrainingRun(
            model=model,
            policy=name,
            trainer=build(),
            database=database,
            checkpoints=settings.data_dir / "checkpoints" / model,
            keep_checkpoints=settings.keep_checkpoints,
        )

    def policy_trainer() -> Trainer:
        return PolicyTrainer(
            settings.model, settings.trainer(), world, base_model=settings.base_model
        )

    policy = await worker.run(training_run, ModelRole.POLICY, settings.policy, policy_trainer)
    edit_tokens = await worker.run(EditTokenizer, settings.model)
    batches = PolicyBatcher(database, settings, edit_tokens=edit_tokens)
    made: list[tuple[TrainingRun, Batcher]] = [(policy, batches)]
    backbone = settings.reward_model
    if backbone is not None:
        from tuneloop.learner.trainer.reward_model import RewardTrainer

        def reward_trainer() -> Trainer:
            return RewardTrainer(backbone, settings.reward_trainer())

        name = f"{settings.policy}-reward-model"
        reward_model = await worker.run(training_run, ModelRole.REWARD_MODEL, name, reward_trainer)
        made.append((reward_model, RewardBatcher(database, settings)))
    return made
