"""Promotion and roll-back: the routing table, the ledger's history, and who holds what."""

from pathlib import Path

import pytest
from sqlalchemy import select
from support.learner_parts import Parts

from tuneloop.bus.subjects import stable_policy_key
from tuneloop.errors import Conflict, FailedPrecondition, InvalidRequest, NotFound, Unavailable
from tuneloop.learner.ledger.accounting import promotions as recorded
from tuneloop.learner.ledger.accounting import versions
from tuneloop.learner.ledger.schema import promotions
from tuneloop.v1 import generation_pb2


@pytest.fixture
async def parts(tmp_path: Path) -> Parts:
    """A learner that has published versions 1 and 2."""
    parts = Parts(folder=tmp_path)
    parts.training_run.restore()
    await publish(parts, 0)
    await publish(parts, 8)
    return parts


async def publish(parts: Parts, start: int) -> None:
    parts.thumbs(start, 8)
    await parts.turn()
    await parts.turn()


def states(parts: Parts) -> dict[int, str]:
    found = versions.list_versions(parts.database, "policy", limit=9)
    return {version.version: version.state.value for version in found}


async def test_rolling_back_serves_the_last_good_version_and_holds_what_comes_next(
    parts: Parts,
) -> None:
    assert await parts.release.roll_back(None, "ann") == 1
    assert await parts.release.stable("policy") == 1
    assert states(parts) == {1: "stable", 2: "quarantined"}
    await publish(parts, 16)
    assert await parts.release.stable("policy") == 1
    assert states(parts)[3] == "candidate"
    assert parts.release.held_by == "ann"
    await parts.release.promote(3, "bob")
    assert states(parts) == {1: "retired", 2: "quarantined", 3: "stable"}
    await publish(parts, 24)
    assert await parts.release.stable("policy") == 4
    with parts.database.read() as connection:
        query = select(promotions.c.action, promotions.c.actor, promotions.c.version)
        history = [tuple(row) for row in connection.execute(query.order_by(promotions.c.number))]
    assert history == [
        ("publish", "learner", 1),
        ("publish", "learner", 2),
        ("roll back", "ann", 1),
        ("promote", "bob", 3),
        ("publish", "learner", 4),
    ]


async def test_a_routing_table_that_was_lost_names_the_stable_version_again(parts: Parts) -> None:
    key = stable_policy_key("tuneloop")
    before = await parts.bus.routing(key)
    assert before is not None
    assert not await parts.release.restore_routing()
    parts.bus.lose_routing()
    assert await parts.release.stable("policy") == 0
    assert await parts.release.restore_routing()
    after = await parts.bus.routing(key)
    assert after is not None
    assert after.value == before.value
    # What a person chose is no loss.
    await parts.release.roll_back(0, "ann")
    assert not await parts.release.restore_routing()
    parts.bus.lose_routing()
    assert not await parts.release.restore_routing()


async def name(parts: Parts, **reference: object) -> None:
    """Let the routing table name weights without the learner."""
    key = stable_policy_key("tuneloop")
    entry = await parts.bus.routing(key)
    assert entry is not None
    given = generation_pb2.WeightsReference.FromString(entry.value)
    for field, value in reference.items():
        setattr(given, field, value)
    await parts.bus.set_routing(key, given.SerializeToString(), revision=entry.revision)


@pytest.mark.parametrize(
    "named",
    [
        {"policy_version": 9, "manifest_sha256": "9" * 64},
        {"policy_version": 2, "manifest_sha256": "9" * 64},
        {"policy_version": 1, "manifest_sha256": "1" * 64},
        {"policy_version": 0, "uri": "", "manifest_sha256": ""},
    ],
    ids=["unknown", "other weights", "retired", "version 0"],
)
async def test_a_table_of_another_time_names_what_is_stable_by_the_ledger_again(
    parts: Parts, named: dict[str, object]
) -> None:
    before = await parts.bus.routing(stable_policy_key("tuneloop"))
    assert before is not None
    if named["policy_version"] == 1:
        first = versions.get_version(parts.database, "policy", 1).reference
        named["manifest_sha256"] = first.manifest_sha256
    await name(parts, **named)
    assert await parts.release.restore_routing()
    after = await parts.bus.routing(stable_policy_key("tuneloop"))
    assert after is not None
    assert after.value == before.value
    assert states(parts) == {1: "retired", 2: "stable"}
    assert not await parts.release.restore_routing()


@pytest.mark.parametrize("version", [1, 0])
async def test_a_change_that_the_ledger_missed_is_noted(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    class Died(BaseException):
        """The learner was killed."""

    def die(*arguments: object, **options: object) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(recorded, "record_promotion", die)
        with pytest.raises(Died):
            await parts.release.roll_back(version, "ann")
    assert states(parts) == {1: "retired", 2: "stable"}
    assert await parts.release.restore_routing()
    assert await parts.release.stable("policy") == version
    expected = {1: "stable" if version else "retired", 2: "retired"}
    assert states(parts) == expected
    assert not await parts.release.restore_routing()


async def test_rolling_back_to_version_0_serves_the_base_model(parts: Parts) -> None:
    assert await parts.release.roll_back(0, "ann") == 0
    entry = await parts.bus.routing(stable_policy_key("tuneloop"))
    assert entry is not None
    reference = generation_pb2.WeightsReference.FromString(entry.value)
    assert (reference.policy, reference.policy_version, reference.uri) == ("tuneloop", 0, "")
    assert "stable" not in states(parts).values()
    with pytest.raises(FailedPrecondition, match="nothing to go back to"):
        await parts.release.roll_back(None, "ann")


async def test_what_cannot_be_served_is_refused(parts: Parts) -> None:
    with pytest.raises(NotFound, match="no version 9"):
        await parts.release.promote(9, "ann")
    with pytest.raises(InvalidRequest, match="not before 2"):
        await parts.release.roll_back(2, "ann")
    assert parts.release.held_by == ""
    assert await parts.release.stable("policy") == 2


async def test_a_change_by_somebody_else_is_seen_before_it_is_overwritten(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = parts.bus.set_routing
    refusals = iter([Conflict("changed"), Conflict("changed")])

    async def contended(key: str, value: bytes, *, revision: int | None) -> object:
        for refusal in refusals:
            raise refusal
        return await really(key, value, revision=revision)

    monkeypatch.setattr(parts.bus, "set_routing", contended)
    assert await parts.release.promote(1, "ann") == 1
    assert await parts.release.stable("policy") == 1


async def test_while_the_bus_is_down_nothing_is_promoted(parts: Parts) -> None:
    parts.bus.go_down()
    with pytest.raises(Unavailable):
        await parts.release.promote(1, "ann")
    assert states(parts) == {1: "retired", 2: "stable"}
