"""Build the learner from its settings."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from tuneloop.bus import Bus
from tuneloop.bus.subjects import FEEDBACK
from tuneloop.errors import Unavailable
from tuneloop.learner.app.models import (
    join_ranks,
    make_follow_ups,
    make_training_runs,
)
from tuneloop.learner.app.release import (
    BeforePublishing,
    ask_about_base,
    before_publishing,
    end_left_over,
    make_canary,
    make_gate,
    make_local_answers,
    make_scorer,
)
from tuneloop.learner.app.resources import (
    connect_bus,
    make_intakes,
    open_ledger,
    open_store,
    prepare_ledger,
)
from tuneloop.learner.batching.batch import Batcher
from tuneloop.learner.clients.generation import GenerationClient
from tuneloop.learner.intake.consumers import IntakeConsumer, run_consumers
from tuneloop.learner.intake.importer import Importer
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.queue import prompts as held_out
from tuneloop.learner.loop import Loop
from tuneloop.learner.model_thread import ModelThread
from tuneloop.learner.monitoring.alarm_monitor import AlarmMonitor
from tuneloop.learner.monitoring.expiry import Expiry
from tuneloop.learner.monitoring.follow_ups import FollowUps
from tuneloop.learner.monitoring.gauges import keep_fresh
from tuneloop.learner.monitoring.logprob_gap import LogprobGap
from tuneloop.learner.monitoring.reference_fill import ReferenceFill
from tuneloop.learner.monitoring.retraction_monitor import RetractionMonitor
from tuneloop.learner.monitoring.stream_trim import StreamTrim
from tuneloop.learner.monitoring.webhooks import Webhook, make_webhooks
from tuneloop.learner.prompts.prompt_sets import Prompts, load_prompts
from tuneloop.learner.prompts.sampler import PromptSampler, PromptSamplerOptions
from tuneloop.learner.release.canary.controller import CanaryController
from tuneloop.learner.release.gate.controller import GateController
from tuneloop.learner.release.gate.prompts import GatePrompts, load_gate_prompts
from tuneloop.learner.release.promotion import Promotion
from tuneloop.learner.release.publisher import BaseModel, Publisher, trained_with
from tuneloop.learner.release.retention.pruner import Pruner
from tuneloop.learner.schedule import LoopSchedule
from tuneloop.learner.service.rebuild import Rebuild
from tuneloop.learner.service.servicer import LearnerServicer
from tuneloop.learner.settings import LearnerSettings
from tuneloop.learner.training_run import TrainingRun
from tuneloop.rollouts import SamplingParameters
from tuneloop.rpc.channel import connect_to
from tuneloop.rpc.server import Server
from tuneloop.weights.filesystem import FilesystemStore

logger = logging.getLogger("tuneloop.learner.app")

RETRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """Everything that runs."""

    policy: str
    bus: Bus
    database: Database
    intakes: list[IntakeConsumer]
    loop: Loop
    release: Promotion
    server: Server
    prompt_sampler: PromptSampler | None
    follow_ups: FollowUps | None
    gate_controller: GateController | None
    left_over: CanaryController | None
    """A canary of an earlier run, if canaries are off now."""
    expiry: Expiry
    watch: AlarmMonitor
    asking: asyncio.Future[None]
    """Asks version 0 what the gate compares with, if it was not; in the trainer's queue before any
    checkpoint is restored."""
    retractions: RetractionMonitor
    pruner: Pruner
    webhooks: list[Webhook]
    dismiss: Callable[[], Awaitable[None]]
    """Lets the other ranks end; nothing can be trained after that."""

    async def run(self) -> None:
        """Record events, learn and answer until cancelled; any failure ends all."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                run_consumers(self.bus, self.policy, self.intakes, self.loop.arrived.set)
            )
            tasks.create_task(self.loop.run())
            tasks.create_task(keep_trying(self.release.keep_routing))
            tasks.create_task(keep_trying(partial(keep_fresh, self.database, self.loop.progress)))
            tasks.create_task(keep_trying(self.expiry.run))
            tasks.create_task(keep_trying(self.watch.run))
            tasks.create_task(keep_trying(self.retractions.run))
            tasks.create_task(self.make_stream_trim().run())
            tasks.create_task(keep_trying(self.pruner.run))
            for webhook in self.webhooks:
                tasks.create_task(keep_trying(webhook.run))
            if self.prompt_sampler is not None:
                tasks.create_task(self.prompt_sampler.run())
            if self.follow_ups is not None:
                tasks.create_task(keep_trying(self.follow_ups.run))
            if self.gate_controller is not None:
                tasks.create_task(self.gate_controller.run())
            if self.left_over is not None:
                tasks.create_task(end_left_over(self.left_over))

    def make_stream_trim(self) -> StreamTrim:
        """Build what deletes old feedback from the stream."""
        intake = next(intake for intake in self.intakes if intake.stream == FEEDBACK)
        return StreamTrim(
            self.bus, self.database, self.policy, lambda: intake.open(self.bus, self.policy)
        )

    async def close(self) -> None:
        """Stop answering and disconnect."""
        await self.server.stop()
        await self.bus.close()


async def keep_trying(work: Callable[[], Awaitable[None]]) -> None:
    """Run what has no end, and again after `Unavailable`: the ledger or the bus is away."""
    while True:
        try:
            await work()
        except Unavailable as error:
            logger.warning("%s; trying again in %.0f s", error, RETRY_SECONDS)
            await asyncio.sleep(RETRY_SECONDS)


async def assemble(settings: LearnerSettings) -> Learner:
    """Open the ledger and the bus, load the models, start answering."""
    database = await asyncio.to_thread(open_ledger, settings)
    base_models = await asyncio.to_thread(prepare_ledger, settings, database)
    store, bus = open_store(settings), await connect_bus(settings, database)
    watch, worker = AlarmMonitor(database, settings.guards), ModelThread()
    release = make_promotion(settings, database, bus, watch)
    world = await worker.run(lambda: join_ranks(settings.memory_gib))
    training_runs = await make_training_runs(settings, database, worker, world)
    prompts, questions = await asyncio.to_thread(load_own_prompts, settings, database)
    trainer = training_runs[0][0].trainer
    local_answers = await asyncio.to_thread(make_local_answers, settings, questions, trainer)
    scorer = await asyncio.to_thread(make_scorer, settings, trainer)
    ask = before_publishing(trainer, local_answers, scorer)
    publisher = make_publisher(
        settings, database, base_models, ask, bus=bus, store=store, release=release
    )
    loop = make_loop(settings, training_runs, publisher, database=database, bus=bus, worker=worker)
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
    servicer = LearnerServicer(
        settings=settings,
        database=database,
        loop=loop,
        release=release,
        bus=bus,
        importer=Importer(database, settings.policy, settings.model),
        gate=lambda: "" if gate_controller is None else gate_controller.waiting,
        watch=watch,
    )
    return Learner(
        policy=settings.policy,
        bus=bus,
        database=database,
        intakes=make_intakes(settings, database),
        loop=loop,
        release=release,
        server=await start_server(settings, servicer),
        prompt_sampler=make_prompt_sampler(settings, database, prompts, loop),
        follow_ups=await make_follow_ups(settings, database, loop, worker),
        gate_controller=gate_controller,
        left_over=None if settings.release == "gate+canary" else canary,
        expiry=await asyncio.to_thread(make_expiry, settings, database),
        watch=watch,
        asking=asyncio.ensure_future(worker.run(lambda: ask_about_base(local_answers, scorer))),
        retractions=make_retraction_monitor(settings, database, release, loop),
        pruner=Pruner(database, store, settings.retention, settings.data_dir),
        webhooks=await asyncio.to_thread(make_webhooks, settings, settings.policy, database),
        dismiss=lambda: worker.run(world.dismiss),
    )


def make_expiry(settings: LearnerSettings, database: Database) -> Expiry:
    """Build what expires old feedback, and expire what is too old already."""
    expiry = Expiry(database, max_age=settings.feedback_max_age, rollout_wait=settings.rollout_wait)
    expiry.expire_old_feedback()
    return expiry


def make_retraction_monitor(
    settings: LearnerSettings, database: Database, release: Promotion, loop: Loop
) -> RetractionMonitor:
    """Build what rebuilds the policy if too much was retracted."""
    rebuild = Rebuild(database, release, loop).to_version
    return RetractionMonitor(database, settings.guards, rebuild)


def make_promotion(
    settings: LearnerSettings, database: Database, bus: Bus, watch: AlarmMonitor
) -> Promotion:
    """Make what promotes versions; an alarm holds it."""
    return Promotion(
        policy=settings.policy,
        bus=bus,
        database=database,
        gate=settings.release,
        alarm=lambda: watch.holding,
    )


def make_publisher(
    settings: LearnerSettings,
    database: Database,
    base_models: Mapping[str, BaseModel],
    ask: BeforePublishing,
    *,
    bus: Bus,
    store: FilesystemStore,
    release: Promotion,
) -> Publisher:
    """Make what publishes versions."""
    return Publisher(
        bus=bus,
        store=store,
        database=database,
        release=release,
        outbox=settings.data_dir / "outbox",
        base_models=base_models,
        trained_with=trained_with(settings),
        before_publishing=ask,
    )


def load_own_prompts(
    settings: LearnerSettings, database: Database
) -> tuple[Prompts, GatePrompts | None]:
    """Load the learner's own prompts and the gate's, and hold out those that evaluate."""
    prompts = load_prompts(settings)
    questions = load_gate_prompts(settings, prompts)
    asked = [*prompts.evaluation, *(() if questions is None else questions.rows)]
    held_out.hold_out(database, (row.asked.token_ids for row in asked))
    return prompts, questions


def make_loop(
    settings: LearnerSettings,
    training_runs: Sequence[tuple[TrainingRun, Batcher]],
    publisher: Publisher,
    *,
    database: Database,
    bus: Bus,
    worker: ModelThread,
) -> Loop:
    """Make the loop of steps and versions."""
    policy = training_runs[0][0]
    fill = ReferenceFill(database, policy.trainer)
    gap = LogprobGap(database, policy)

    def between_turns() -> None:
        fill.fill_missing()
        gap.measure()

    return Loop(
        training_runs=training_runs,
        publisher=publisher,
        database=database,
        bus=bus,
        worker=worker,
        pace=LoopSchedule(
            publish_every_steps=settings.publish_every_steps,
            publish_every_seconds=settings.publish_every_seconds,
            checkpoint_every_steps=settings.checkpoint_every_steps,
        ),
        between_turns=between_turns,
        set_aside_after=settings.gate.set_aside_after,
    )


async def start_server(settings: LearnerSettings, servicer: LearnerServicer) -> Server:
    """Start answering the learner's calls."""
    server = Server(
        host=settings.host,
        port=settings.port,
        tls=settings.grpc_tls,
        peers=settings.grpc_peers,
        token=settings.grpc_token,
        drain_seconds=1.0,
    )
    servicer.add_to(server)
    await server.start()
    await server.set_serving(True)
    return server


def make_prompt_sampler(
    settings: LearnerSettings, database: Database, prompts: Prompts, loop: Loop
) -> PromptSampler | None:
    """Build the sampler of the learner's own prompts; None without any. Needs the event loop."""
    if not (prompts.training or prompts.evaluation):
        return None
    return PromptSampler(
        generation=GenerationClient(
            connect_to(settings, settings.generation_address), settings.policy
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
