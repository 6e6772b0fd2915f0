"""The learner's parts, put together from its settings."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuneloop.bus import Bus
from tuneloop.bus.jetstream import JetStreamBus
from tuneloop.learner.app.canary import end_left_over, make_canary
from tuneloop.learner.app.gate import make_gatekeeper, make_rehearsals
from tuneloop.learner.batching.batcher import PolicyBatches, RewardBatches
from tuneloop.learner.clients.generation import Generation
from tuneloop.learner.data.tokenize import EditTokenizer
from tuneloop.learner.files import fingerprint
from tuneloop.learner.intake.consumers import Intake, intakes, run_all
from tuneloop.learner.intake.importer import Importer
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.queue import prompts as held_out
from tuneloop.learner.ledger.queue import ref_logprobs
from tuneloop.learner.loop import Batches, Loop, Pace
from tuneloop.learner.model_thread import Worker
from tuneloop.learner.monitoring.alarm_monitor import Watch
from tuneloop.learner.monitoring.expiry import Expiry
from tuneloop.learner.monitoring.gauges import keep_fresh
from tuneloop.learner.monitoring.reference_fill import Referring
from tuneloop.learner.prompts.prompt_sets import Prompts, load_prompts
from tuneloop.learner.prompts.sampler import Prompting, PromptingOptions
from tuneloop.learner.release.canary.controller import Canary
from tuneloop.learner.release.gate.controller import Gatekeeper
from tuneloop.learner.release.gate.prompts import load_questions
from tuneloop.learner.release.manifest import trained_with
from tuneloop.learner.release.promotion import Release
from tuneloop.learner.release.publisher import BaseModel, Publisher
from tuneloop.learner.service.servicer import LearnerServicer
from tuneloop.learner.settings import LearnerSettings
from tuneloop.learner.trainer.base import Trainer
from tuneloop.learner.training_run import Trainee
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
    intakes: list[Intake]
    loop: Loop
    server: Server
    prompting: Prompting | None
    gatekeeper: Gatekeeper | None
    left_over: Canary | None
    """What may still be on trial, where canaries are off."""
    expiry: Expiry
    watch: Watch
    dismiss: Callable[[], Awaitable[None]]
    """Lets the other ranks end; nothing can be trained then."""

    async def run(self) -> None:
        """Take in, learn and answer until cancelled; whatever fails ends all."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run_all(self.bus, self.policy, self.intakes, self.loop.arrived.set))
            tasks.create_task(self.loop.run())
            tasks.create_task(keep_fresh(self.database, self.loop.progress))
            tasks.create_task(self.expiry.run())
            tasks.create_task(self.watch.run())
            if self.prompting is not None:
                tasks.create_task(self.prompting.run())
            if self.gatekeeper is not None:
                tasks.create_task(self.gatekeeper.run())
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
    watch = Watch(database, settings.guards)
    release = Release(
        policy=policy,
        bus=bus,
        database=database,
        gate=settings.release,
        alarm=lambda: watch.holding,
    )
    worker = Worker()
    world = await worker.run(meet)
    trainees = await make_trainees(settings, database, worker, world)
    prompts = await asyncio.to_thread(load_prompts, settings)
    questions = await asyncio.to_thread(load_questions, settings, prompts)
    asked = [*prompts.evaluation, *(() if questions is None else questions.rows)]
    held_out.hold_out(database, (row.asked.token_ids for row in asked))
    trainer = trainees[0][0].trainer
    referring = Referring(database, trainer)
    rehearsals = await asyncio.to_thread(make_rehearsals, settings, questions, trainer)
    loop = Loop(
        trainees=trainees,
        publisher=Publisher(
            bus=bus,
            store=store,
            database=database,
            release=release,
            outbox=settings.data_dir / "outbox",
            base_models=base_models,
            trained_with=trained_with(settings),
            rehearse=lambda version: None if rehearsals is None else rehearsals.take(version),
        ),
        database=database,
        bus=bus,
        worker=worker,
        pace=Pace(
            publish_every_steps=settings.publish_every_steps,
            publish_every_seconds=settings.publish_every_seconds,
            checkpoint_every_steps=settings.checkpoint_every_steps,
        ),
        between_turns=referring.go_on,
        set_aside_after=settings.gate.set_aside_after,
    )
    canary = make_canary(settings, bus=bus, database=database, release=release)
    gatekeeper = make_gatekeeper(
        settings,
        database=database,
        release=release,
        store=store,
        questions=questions,
        rehearsals=rehearsals,
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
        gate=lambda: "" if gatekeeper is None else gatekeeper.waiting,
        watch=watch,
    )
    server.add(learner_pb2_grpc.add_LearnerServiceServicer_to_server, servicer)
    await server.start()
    await server.set_serving(True)
    return Learner(
        policy=policy,
        bus=bus,
        database=database,
        intakes=intakes(
            database,
            policy,
            scored_objective=settings.scored_objective,
            all_scores_count=settings.ppo == "on",
        ),
        loop=loop,
        server=server,
        prompting=make_prompting(settings, database, prompts, loop),
        gatekeeper=gatekeeper,
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


def meet() -> "World":
    """The ranks that torchrun started, which follow this one."""
    # torch comes in here.
    from tuneloop.learner.models.world import join

    return join()


def make_prompting(
    settings: LearnerSettings, database: Database, prompts: Prompts, loop: Loop
) -> Prompting | None:
    """What asks the learner's own prompts; None without any. Call it inside the event loop."""
    if not (prompts.training or prompts.evaluation):
        return None
    return Prompting(
        generation=Generation(
            connect(settings.generation_address, settings.grpc_tls), settings.policy
        ),
        database=database,
        prompts=prompts,
        options=PromptingOptions(
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
    found = {
        "policy": BaseModel(
            name=settings.base_model,
            sha256=base_model_sha256(settings.model),
            kind=settings.weights_kind,
        )
    }
    if settings.reward_model is not None:
        found["reward_model"] = BaseModel(
            name=settings.reward_model.name,
            sha256=base_model_sha256(settings.reward_model),
            kind=WeightsKind.FULL,
        )
    return found


async def make_trainees(
    settings: LearnerSettings, database: Database, worker: Worker, world: "World"
) -> list[tuple[Trainee, Batches]]:
    """Load the models, in the thread that will train them."""
    # torch and transformers come in here.
    from tuneloop.learner.trainer.policy import PolicyTraining

    def trainee(model: str, name: str, build: Callable[[], Trainer]) -> Trainee:
        return Trainee(
            model=model,
            policy=name,
            trainer=build(),
            database=database,
            checkpoints=settings.data_dir / "checkpoints" / model,
            keep_checkpoints=settings.keep_checkpoints,
        )

    def policy_trainer() -> Trainer:
        return PolicyTraining(settings.model, settings.base_model, settings.trainer(), world)

    policy = await worker.run(trainee, "policy", settings.policy, policy_trainer)
    edit_tokens = await worker.run(EditTokenizer, settings.model)
    batches = PolicyBatches(database, settings, edit_tokens=edit_tokens)
    made: list[tuple[Trainee, Batches]] = [(policy, batches)]
    backbone = settings.reward_model
    if backbone is not None:
        from tuneloop.learner.trainer.reward_model import RewardTraining

        def reward_trainer() -> Trainer:
            return RewardTraining(backbone, settings.reward_trainer())

        name = f"{settings.policy}-reward-model"
        reward_model = await worker.run(trainee, "reward_model", name, reward_trainer)
        made.append((reward_model, RewardBatches(database, settings)))
    return made
