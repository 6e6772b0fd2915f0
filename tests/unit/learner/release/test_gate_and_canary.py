"""Gatekeeper, canary and release together: from a candidate to what becomes of it."""

from pathlib import Path

import pytest
from support.canary_trial import Replica
from support.learner_parts import Parts

from tuneloop import wire
from tuneloop.bus.subjects import canary_policy_key
from tuneloop.learner.app.release import end_left_over
from tuneloop.learner.ledger.accounting import decisions, versions
from tuneloop.learner.ledger.accounting.versions import Version
from tuneloop.learner.release.canary.controller import CanaryController
from tuneloop.learner.release.canary.settings import CanarySettings
from tuneloop.learner.release.gate.controller import GateController
from tuneloop.learner.release.gate.settings import GateSettings
from tuneloop.learner.release.gate.verdict import GateVerdict


class Passing:
    """A gate that everything passes."""

    async def examine(self, candidate: Version, stable: Version | None) -> GateVerdict:
        return GateVerdict(passed=True, reason="", numbers={})


class Releases:
    """A learner whose versions are tried for 100 seconds; then `action` is taken."""

    def __init__(self, folder: Path, action: str) -> None:
        self.parts = Parts(folder=folder, options={"release": "gate+canary"})
        self.parts.training_run.restore()
        self.replica = Replica()
        self.canary = CanaryController(
            policy="tuneloop",
            bus=self.parts.bus,
            database=self.parts.database,
            release=self.parts.release,
            generation=[self.replica],
            settings=CanarySettings.model_validate(
                {"deadline_seconds": 100.0, "deadline_action": action}
            ),
            clock=self.parts.clock,
        )
        self.keeper = GateController(
            database=self.parts.database,
            release=self.parts.release,
            evaluator=Passing(),
            settings=GateSettings(),
            canary=self.canary,
            pause=lambda: None,
            clock=self.parts.clock,
        )

    async def learn(self, start: int) -> int:
        """The newest version, learned from new thumbs."""
        self.parts.thumbs(start, 8)
        for _ in range(3):
            await self.parts.turn()
        return versions.newest_version(self.parts.database, "policy")

    async def turn(self, seconds: float = 10.0) -> None:
        self.parts.clock.now += seconds
        await self.keeper.turn()
        await self.keeper.turn()

    async def routed(self) -> int | None:
        entry = await self.parts.bus.routing(canary_policy_key("tuneloop"))
        route = None if entry is None else wire.decode_canary(entry.value)
        return None if route is None else route.weights.policy_version

    def state(self, version: int) -> str:
        return versions.get_version(self.parts.database, "policy", version).state.value

    def outcomes(self, version: int) -> list[tuple[str, str]]:
        found = decisions.of_version(self.parts.database, "policy", version)
        return [(d.kind, d.outcome) for d in found]


async def test_a_version_is_tried_then_promoted_while_newer_ones_wait(tmp_path: Path) -> None:
    releases = Releases(tmp_path, "promote")
    first = releases.replica.loads = await releases.learn(0)
    await releases.turn()
    assert (releases.canary.version, await releases.routed()) == (first, first)
    assert (releases.state(first), await releases.parts.release.stable("policy")) == ("canary", 0)
    second = await releases.learn(8)
    third = await releases.learn(16)
    await releases.turn()
    assert (releases.canary.version, releases.state(second)) == (first, "retired")
    assert "canary" in releases.keeper.waiting
    releases.replica.loads = third
    await releases.turn(100)
    assert releases.outcomes(first) == [
        ("gate", "pass"),
        ("canary", "start"),
        ("canary", "promote"),
        ("promote", "promote"),
    ]
    assert await releases.parts.release.stable("policy") == first
    await releases.turn()
    assert (releases.canary.version, await releases.routed()) == (third, third)


async def test_one_that_loses_is_quarantined_and_its_thumbs_are_learned_from_again(
    tmp_path: Path,
) -> None:
    releases = Releases(tmp_path, "roll_back")
    first = releases.replica.loads = await releases.learn(0)
    await releases.turn()
    thumbs = set(releases.parts.used())
    await releases.turn(100)
    assert (releases.state(first), await releases.routed()) == ("quarantined", None)
    assert await releases.parts.release.stable("policy") == 0
    for _ in range(3):
        await releases.parts.turn()
    second = versions.newest_version(releases.parts.database, "policy")
    assert second > first
    assert set(releases.parts.used()) == thumbs
    assert versions.get_version(releases.parts.database, "policy", second).parent == 0


@pytest.mark.parametrize("action", ["promote", "hold"])
async def test_a_person_who_rolls_back_ends_the_trial(tmp_path: Path, action: str) -> None:
    releases = Releases(tmp_path, action)
    first = await releases.learn(0)
    await releases.parts.release.promote(first, "ann")
    second = releases.replica.loads = await releases.learn(8)
    await releases.turn()
    assert releases.canary.version == second
    await releases.parts.release.roll_back(0, "ann")
    await releases.turn()
    assert (releases.canary.version, await releases.routed()) == (None, None)
    await releases.turn(1000)
    assert await releases.parts.release.stable("policy") == 0
    assert ("canary", "promote") not in releases.outcomes(second)


async def test_where_canaries_are_off_one_that_was_left_is_ended(tmp_path: Path) -> None:
    releases = Releases(tmp_path, "hold")
    first = await releases.learn(0)
    await releases.turn()
    await end_left_over(releases.canary)
    assert (releases.canary.version, await releases.routed()) == (None, None)
    assert releases.state(first) == "retired"
