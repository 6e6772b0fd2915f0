"""The gatekeeper: which candidate is examined, and what becomes of it."""

from pathlib import Path

import pytest
from support.learner_parts import Parts

from tuneloop.backoff import Backoff
from tuneloop.errors import TuneloopError, Unavailable
from tuneloop.learner.ledger.accounting import decisions, versions
from tuneloop.learner.ledger.accounting.versions import Version
from tuneloop.learner.release.gate.controller import GateController
from tuneloop.learner.release.gate.settings import GateSettings
from tuneloop.learner.release.gate.verdict import GateVerdict

PASSED = GateVerdict(passed=True, reason="within all bounds", numbers={"kl": 0.1})
FAILED = GateVerdict(passed=False, reason="it babbles", numbers={"kl": 9.0})


class Examiner:
    """Says what it is told to; remembers what it was asked."""

    def __init__(self) -> None:
        self.says: GateVerdict | TuneloopError = PASSED
        self.asked: list[tuple[int, int]] = []

    async def examine(self, candidate: Version, stable: Version | None) -> GateVerdict:
        self.asked.append((candidate.version, 0 if stable is None else stable.version))
        if isinstance(self.says, TuneloopError):
            raise self.says
        return self.says


class Canary:
    """Runs until it is told to stop."""

    def __init__(self) -> None:
        self.version: int | None = None
        self.ticks = 0
        self.stopped: list[str] = []

    def start(self, version: int) -> None:
        self.version = version

    async def tick(self) -> None:
        self.ticks += 1

    async def stop(self, reason: str) -> None:
        self.version = None
        self.stopped.append(reason)


class Gate:
    """A gatekeeper over a learner's parts."""

    def __init__(self, parts: Parts, canary: Canary | None = None) -> None:
        self.parts = parts
        parts.training_run.restore()
        self.evaluator = Examiner()
        self.paused = 0
        self.keeper = GateController(
            database=parts.database,
            release=parts.release,
            evaluator=self.evaluator,
            settings=GateSettings(pause_after=2),
            canary=canary,
            pause=self.pause,
            clock=parts.clock,
        )

    def pause(self) -> None:
        self.paused += 1

    async def publish(self) -> int:
        count = versions.newest_version(self.parts.database, "policy")
        self.parts.thumbs(8 * count, 8)
        for _ in range(2):
            await self.parts.turn()
        return versions.newest_version(self.parts.database, "policy")

    def history(self, version: int) -> list[tuple[str, str]]:
        found = decisions.of_version(self.parts.database, "policy", version)
        return [(decision.kind, decision.outcome) for decision in found]

    def state(self, version: int) -> str:
        return versions.get_version(self.parts.database, "policy", version).state.value


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(Parts(folder=tmp_path, options={"release": "gate"}))


async def test_a_candidate_that_passes_is_promoted(gate: Gate) -> None:
    await gate.publish()
    assert await gate.parts.release.stable("policy") == 0
    await gate.keeper.turn()
    assert await gate.parts.release.stable("policy") == 1
    await gate.publish()
    await gate.keeper.turn()
    await gate.keeper.turn()
    assert gate.evaluator.asked == [(1, 0), (2, 1)]
    assert gate.history(2) == [("gate", "pass"), ("promote", "promote")]
    (first, _) = decisions.of_version(gate.parts.database, "policy", 1)
    assert (first.numbers, first.reason, first.actor) == ({"kl": 0.1}, "within all bounds", "gate")


async def test_one_that_fails_is_quarantined_and_not_asked_about_again(gate: Gate) -> None:
    gate.evaluator.says = FAILED
    await gate.publish()
    await gate.keeper.turn()
    await gate.keeper.turn()
    assert gate.evaluator.asked == [(1, 0)]
    assert gate.history(1) == [("gate", "fail"), ("quarantine", "quarantined")]
    assert gate.state(1) == "quarantined"
    assert await gate.parts.release.stable("policy") == 0


async def test_what_a_person_promoted_meanwhile_is_left_alone(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slowly(candidate: Version, stable: Version | None) -> GateVerdict:
        await gate.parts.release.promote(candidate.version, "ann")
        return FAILED

    monkeypatch.setattr(gate.evaluator, "examine", slowly)
    await gate.publish()
    await gate.keeper.turn()
    assert gate.state(1) == "stable"
    assert gate.history(1) == [("promote", "promote"), ("gate", "fail")]


async def test_while_generation_is_away_it_neither_passes_nor_fails(gate: Gate) -> None:
    gate.keeper._backoff = Backoff(0.0)
    gate.evaluator.says = Unavailable("generation does not answer")
    await gate.publish()
    for _ in range(3):
        await gate.keeper.turn()
    assert len(gate.evaluator.asked) == 3
    assert gate.state(1) == "candidate"
    assert gate.history(1) == [("gate", "hold")]
    assert "generation does not answer" in gate.keeper.waiting
    gate.evaluator.says = PASSED
    await gate.keeper.turn()
    assert gate.history(1) == [("gate", "hold"), ("gate", "pass"), ("promote", "promote")]
    assert await gate.parts.release.stable("policy") == 1
    await gate.keeper.turn()
    assert gate.keeper.waiting == ""


async def test_it_waits_between_two_attempts(gate: Gate) -> None:
    gate.evaluator.says = Unavailable("generation does not answer")
    await gate.publish()
    for _ in range(3):
        await gate.keeper.turn()
    assert len(gate.evaluator.asked) == 1


async def test_the_newest_candidate_supersedes_the_others(gate: Gate) -> None:
    for _ in range(3):
        await gate.publish()
    await gate.keeper.turn()
    assert gate.evaluator.asked == [(3, 0)]
    assert [gate.state(version) for version in (1, 2, 3)] == ["retired", "retired", "stable"]
    assert gate.history(1) == [("gate", "superseded")]


async def test_a_promotion_that_could_not_be_carried_out_is_made_up_for(gate: Gate) -> None:
    await gate.publish()
    stable = await gate.parts.release.stable("policy")
    assert stable == 0
    really = gate.parts.bus.set_routing

    async def refuse(key: str, value: bytes, *, revision: int | None) -> None:
        raise Unavailable("the bus is away")

    gate.parts.bus.set_routing = refuse  # type: ignore[method-assign, assignment]
    with pytest.raises(Unavailable):
        await gate.keeper.turn()
    gate.parts.bus.set_routing = really  # type: ignore[method-assign]
    await gate.keeper.turn()
    assert gate.evaluator.asked == [(1, 0)]
    assert gate.history(1) == [("gate", "pass"), ("promote", "promote")]


async def test_after_a_person_rolled_back_it_looks_and_waits(gate: Gate) -> None:
    await gate.publish()
    await gate.keeper.turn()
    await gate.parts.release.roll_back(0, "ann")
    await gate.publish()
    await gate.keeper.turn()
    assert gate.history(2) == [("gate", "pass")]
    assert await gate.parts.release.stable("policy") == 0
    assert "ann rolled back" in gate.keeper.waiting
    await gate.parts.release.promote(2, "ann")
    await gate.publish()
    await gate.keeper.turn()
    assert await gate.parts.release.stable("policy") == 3


async def test_one_failure_after_another_pauses_the_learner(gate: Gate) -> None:
    gate.evaluator.says = FAILED
    await gate.publish()
    await gate.keeper.turn()
    assert gate.paused == 0
    await gate.publish()
    await gate.keeper.turn()
    assert gate.paused == 1
    assert gate.history(2)[-1] == ("pause", "paused")


async def test_what_passes_is_tried_on_a_share_of_users_while_newer_ones_wait(
    tmp_path: Path,
) -> None:
    canary = Canary()
    gate = Gate(Parts(folder=tmp_path, options={"release": "gate"}), canary)
    await gate.publish()
    await gate.keeper.turn()
    assert canary.version == 1
    assert await gate.parts.release.stable("policy") == 0
    await gate.publish()
    await gate.publish()
    await gate.keeper.turn()
    assert gate.evaluator.asked == [(1, 0)]
    assert gate.history(2) == [("gate", "superseded")]
    assert gate.keeper.waiting == "the canary, version 1"
    await gate.parts.release.promote(1, "canary")
    await gate.keeper.turn()
    assert canary.stopped == ["version 1 is stable meanwhile"]
    assert (canary.version, canary.ticks) == (3, 3)


async def test_a_canary_ends_when_a_person_decides(tmp_path: Path) -> None:
    canary = Canary()
    gate = Gate(Parts(folder=tmp_path, options={"release": "gate"}), canary)
    await gate.publish()
    await gate.keeper.turn()
    await gate.parts.release.promote(1, "ann")
    await gate.publish()
    await gate.keeper.turn()
    assert canary.version == 2
    await gate.parts.release.roll_back(0, "ann")
    await gate.keeper.turn()
    assert canary.version is None
    assert canary.stopped[-1] in ("version 2 is retired meanwhile", "ann rolled back")
