"""The learner's loop put together on a counting trainer and the bus in memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import select
from support.learner_events import CountingTrainer, edit_tokens, make_rollout, make_thumb

from tuneloop.bus.memory import MemoryBus
from tuneloop.learner.app.resources import sample_rules
from tuneloop.learner.batching.batcher import PolicyBatcher
from tuneloop.learner.intake.consumers import make_consumers, run_consumers
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.schema import uses
from tuneloop.learner.loop import Loop
from tuneloop.learner.model_thread import ModelThread
from tuneloop.learner.release.promotion import Promotion
from tuneloop.learner.release.publisher import BaseModel, Publisher
from tuneloop.learner.schedule import LoopSchedule, NextVersion
from tuneloop.learner.settings import LearnerSettings
from tuneloop.learner.training_run import TrainingRun
from tuneloop.policies import WeightsKind
from tuneloop.weights.filesystem import FilesystemStore
from tuneloop.weights.signing import Signer, Verifier, write_key_pair


class Clock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class BusySchedule(LoopSchedule):
    """As if somebody else's version had been made just before the first step."""

    def next_version(self, training_run: TrainingRun, now: float) -> NextVersion | None:
        """Return how far it is."""
        if training_run.last_version_time is None:
            training_run.last_version_time = training_run.unpublished_since
        return super().next_version(training_run, now)


@dataclass
class Parts:
    """One learner; `again` makes the next one on the same disk, as a restart would."""

    folder: Path
    bus: MemoryBus = field(default_factory=MemoryBus)
    clock: Clock = field(default_factory=Clock)
    options: dict[str, Any] = field(default_factory=dict)
    schedule: type[LoopSchedule] = BusySchedule
    """`LoopSchedule` publishes the first step of all at once."""
    beside: bool = False
    """Whether checkpoints are written beside the next steps."""

    def __post_init__(self) -> None:
        self.bus.clock = self.clock
        keys = self.folder / "keys"
        if not keys.exists():
            write_key_pair(keys)
        self.settings = LearnerSettings(
            model=self.folder,
            weights_uri=str(self.folder / "weights"),
            signing_key_file=keys / "manifest_private.pem",
            verify_key_file=keys / "manifest_public.pem",
            data_dir=self.folder / "learner",
            **{"batch_size": 4, "checkpoint_every_steps": 1, "release": "off", **self.options},
        )
        self.database = Database.at(self.settings.data_dir / "ledger.db")
        self.trainer = CountingTrainer()
        self.store = FilesystemStore(
            self.settings.weights_uri,
            verifier=Verifier.from_file(self.settings.verify_key_file),
            signer=Signer.from_file(self.settings.signing_key_file),
            cache_dir=self.folder / "cache",
        )
        self.release = Promotion(
            policy="tuneloop",
            bus=self.bus,
            database=self.database,
            gate=self.settings.release,
            clock=self.clock,
        )
        self.publisher = Publisher(
            bus=self.bus,
            store=self.store,
            database=self.database,
            release=self.release,
            outbox=self.settings.data_dir / "outbox",
            base_models={"policy": BaseModel(name="tiny", sha256="00", kind=WeightsKind.LORA)},
            clock=self.clock,
        )
        self.training_run = TrainingRun(
            model="policy",
            policy="tuneloop",
            trainer=self.trainer,
            database=self.database,
            checkpoints=self.settings.data_dir / "checkpoints" / "policy",
            keep_checkpoints=self.settings.keep_checkpoints,
            beside=self.beside,
            clock=self.clock,
        )
        self.batches = PolicyBatcher(
            self.database, self.settings, edit_tokens=edit_tokens, clock=self.clock
        )
        self.loop = Loop(
            training_runs=[(self.training_run, self.batches)],
            publisher=self.publisher,
            database=self.database,
            bus=self.bus,
            worker=ModelThread(),
            pace=self.schedule(
                publish_every_steps=self.settings.publish_every_steps,
                publish_every_seconds=self.settings.publish_every_seconds,
                checkpoint_every_steps=self.settings.checkpoint_every_steps,
            ),
            clock=self.clock,
        )

    def again(self) -> "Parts":
        """A restart: what was in memory is gone."""
        self.database.close()
        return replace(self)

    def thumbs(self, start: int, count: int) -> None:
        """Put thumbs with their rollouts into the ledger."""
        numbers = range(start, start + count)
        recorder.record_rollouts(
            self.database, [make_rollout(f"c{n}") for n in numbers], self.clock()
        )
        thumbs = [(make_thumb(f"f{n}", f"c{n}", n % 2 == 0, second=n), n) for n in numbers]
        recorder.record_feedback(self.database, thumbs, self.clock())

    async def turn(self) -> bool:
        """One turn of the loop."""
        return await self.loop.turn(self.training_run, self.batches)

    def used(self) -> dict[str, int]:
        """The step that used each sample; fails if one was used twice."""
        with self.database.read() as connection:
            rows = connection.execute(select(uses.c.sample_id, uses.c.step)).all()
        assert len({row.sample_id for row in rows}) == len(rows)
        return {row.sample_id: row.step for row in rows}

    @asynccontextmanager
    async def taking_in(self) -> AsyncIterator[None]:
        """Intake runs inside."""
        consumers = make_consumers(
            self.database,
            "tuneloop",
            rules=sample_rules(self.settings),
            clock=self.clock,
        )
        task = asyncio.create_task(
            run_consumers(self.bus, "tuneloop", consumers, self.loop.arrived.set)
        )
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
