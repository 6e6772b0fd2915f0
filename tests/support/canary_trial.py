"""A canary over a real ledger and the bus in memory, with traffic made by hand."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import update
from support.learner_events import make_metric, make_rollout, make_score, make_thumb

from tuneloop import wire
from tuneloop.bus.memory import MemoryBus
from tuneloop.bus.subjects import canary_policy_key
from tuneloop.errors import Unavailable
from tuneloop.learner.ledger.accounting import versions
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.schema import versions as versions_table
from tuneloop.learner.release.canary.controller import CanaryController
from tuneloop.learner.release.canary.settings import CanarySettings
from tuneloop.policies import (
    CanaryRoute,
    ServedPolicy,
    VersionOutcomes,
    WeightsKind,
    WeightsReference,
)

STABLE, CANARY = 1, 2


class Clock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def served_policy(
    counted_by: str, counts: Mapping[int, tuple[int, int]], loaded_canary: int | None = None
) -> ServedPolicy:
    """What a replica tells that has answered and failed `counts` times, by version."""
    return ServedPolicy(
        name="tuneloop",
        policy_version=STABLE,
        weights_kind=WeightsKind.LORA,
        outcomes=tuple(
            VersionOutcomes(policy_version=version, answered=answered, failed=failed)
            for version, (answered, failed) in counts.items()
        ),
        counted_by=counted_by,
        loaded_canary=loaded_canary,
    )


@dataclass
class Replica:
    """What a generation replica tells."""

    loads: int = CANARY
    loaded: bool = True
    away: bool = False
    counted_by: str = "process-1"
    counts: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Answered and failed by version."""

    async def policy(self) -> ServedPolicy:
        if self.away:
            raise Unavailable("away")
        loaded = self.loads if self.loaded else None
        return served_policy(self.counted_by, self.counts, loaded_canary=loaded)


@dataclass
class Release:
    """Does what is asked, and remembers it."""

    database: Database
    serving: int = STABLE
    fails: Exception | None = None
    promoted: list[int] = field(default_factory=list)
    quarantined: list[tuple[int, str, Mapping[str, Any]]] = field(default_factory=list)

    async def stable(self, model: str) -> int:
        assert model == "policy"
        return self.serving

    async def promote(self, version: int, actor: str) -> int:
        assert actor == "canary"
        self.check()
        self.promoted.append(version)
        self.serving = version
        self.set_state(version, "stable")
        return version

    async def quarantine(
        self,
        version: int,
        reason: str,
        numbers: Mapping[str, Any] | None = None,
        *,
        actor: str = "learner",
    ) -> None:
        assert actor == "canary"
        self.check()
        self.quarantined.append((version, reason, numbers or {}))
        self.set_state(version, "quarantined")

    def check(self) -> None:
        if self.fails is not None:
            raise self.fails

    def set_state(self, version: int, state: str) -> None:
        with self.database.write() as connection:
            chosen = versions_table.c.version == version
            connection.execute(update(versions_table).where(chosen).values(state=state))


@dataclass
class Trial:
    """Version 2 against version 1, with users who ask and judge."""

    folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    bus: MemoryBus = field(default_factory=MemoryBus)
    clock: Clock = field(default_factory=Clock)
    replica: Replica = field(default_factory=Replica)
    answers: int = 0

    def __post_init__(self) -> None:
        new = not (self.folder / "ledger.db").exists()
        self.database = Database.at(self.folder / "ledger.db")
        self.release = Release(self.database)
        if new:
            for version in (STABLE, CANARY):
                self.publish(version)
        self.canary = self.make()

    def make(self) -> CanaryController:
        return CanaryController(
            policy="tuneloop",
            bus=self.bus,
            database=self.database,
            release=self.release,
            generation=[self.replica],
            settings=CanarySettings(**{"share": 0.5, "min_events": 5, **self.options}),
            clock=self.clock,
        )

    def restart(self) -> None:
        """What was in memory is gone."""
        self.canary = self.make()

    def publish(self, version: int) -> None:
        now = datetime.fromtimestamp(self.clock(), UTC)
        versions.add_version(
            self.database,
            model="policy",
            version=version,
            policy="tuneloop",
            parent=version - 1,
            first_step=version - 1,
            last_step=version,
            manifest="{}",
            created_time=now,
        )
        reference = WeightsReference(
            policy="tuneloop", policy_version=version, uri=f"v{version}", manifest_sha256="00"
        )
        versions.mark_stored(self.database, "policy", version, reference, "{}")

    async def tick(self, seconds: float = 60.0) -> None:
        """A look, after so long that one is due."""
        self.clock.now += seconds
        await self.canary.tick()

    async def route(self) -> CanaryRoute | None:
        """What the routing table says."""
        entry = await self.bus.routing(canary_policy_key("tuneloop"))
        return None if entry is None else wire.decode_canary(entry.value)

    async def answer(
        self,
        user: str,
        *,
        version: int | None = None,
        up: bool | None = None,
        reward: float | None = None,
        measured: bool | float | None = None,
    ) -> None:
        """A user is answered by the version that the route gives, and judges it."""
        self.answers += 1
        number = self.answers
        route = await self.route()
        if version is None:
            version = CANARY if route is not None and route.takes(user) else STABLE
        rollout = replace(
            make_rollout(f"c{number}", group_id=f"g{number}", user=user, version=version),
            finished_time=datetime.fromtimestamp(self.clock() + 0.1, UTC),
        )
        recorder.record_rollouts(self.database, [rollout], self.clock())
        if up is not None:
            thumb = make_thumb(f"f{number}", f"c{number}", up, user=user, second=number)
            recorder.record_feedback(self.database, [(thumb, number)], self.clock())
        if measured is not None:
            metric = make_metric(f"m{number}", f"c{number}", "solved", measured, user=user)
            metric = replace(metric, accepted_time=datetime.fromtimestamp(self.clock(), UTC))
            recorder.record_feedback(self.database, [(metric, number)], self.clock())
        if reward is not None:
            recorder.record_scores(self.database, [make_score(f"c{number}", reward)], self.clock())


def everybody(count: int) -> list[str]:
    return [f"u{number}" for number in range(count)]
