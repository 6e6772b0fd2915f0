"""The feedback of a key or a tenant: what it trained, and training again without it."""

import dataclasses
from pathlib import Path

import pytest
from support.learner_events import START, make_rollout, make_thumb
from support.learner_parts import Parts

from tuneloop.errors import NotFound, Unavailable
from tuneloop.feedback import FeedbackKind, Retraction
from tuneloop.learner import metrics
from tuneloop.learner.guards.settings import GuardSettings
from tuneloop.learner.ledger.accounting import decisions, senders, version_shares
from tuneloop.learner.ledger.accounting.senders import Sender
from tuneloop.learner.ledger.accounting.version_shares import ShareOfVersion
from tuneloop.learner.ledger.events import lifecycle, recorder
from tuneloop.learner.monitoring import gauges
from tuneloop.learner.monitoring.retraction_monitor import RetractionMonitor
from tuneloop.learner.service.rebuild import Rebuild

SHOP = Sender(api_key="shop")


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(
        folder=tmp_path, options={"checkpoint_every_steps": 100, "publish_every_steps": 100}
    )


def thumbs(
    parts: Parts, name: str, count: int, *, key: str, tenant: str = "default", user: str = ""
) -> None:
    """Record thumbs of some users, `name-u0` and so on, that came with a key."""
    ids = [f"{name}-c{n}" for n in range(count)]
    recorder.record_rollouts(parts.database, [make_rollout(c) for c in ids], 0.0)
    given = [
        (
            dataclasses.replace(
                make_thumb(f"{name}-f{n}", c, user=user or f"{name}-u{n}"),
                api_key_id=f"key-{key}",
                api_key_name=key,
                tenant=tenant,
            ),
            n,
        )
        for n, c in enumerate(ids)
    ]
    recorder.record_feedback(parts.database, given, 0.0)


async def publish(parts: Parts) -> None:
    assert await parts.turn()
    async with parts.loop.paused_turns():
        await parts.loop.publish_soon("policy")
    await parts.turn()


def retract(parts: Parts, *feedback_ids: str) -> None:
    events = [
        Retraction(
            feedback_id=feedback_id,
            kind=FeedbackKind.THUMB,
            policy="tuneloop",
            tenant="default",
            user_hash="",
            retracted_time=START,
        )
        for feedback_id in feedback_ids
    ]
    lifecycle.record_retractions(parts.database, [(event, 9) for event in events], 1.0)


def rebuilding(parts: Parts) -> Rebuild:
    return Rebuild(parts.database, parts.release, parts.loop, clock=parts.clock)


async def three_versions(parts: Parts) -> None:
    """Version 2 learned three parts from the shop and one from the app, the others none."""
    thumbs(parts, "one", 4, key="app")
    await publish(parts)
    thumbs(parts, "two", 3, key="shop", tenant="acme")
    thumbs(parts, "two-b", 1, key="app")
    await publish(parts)
    thumbs(parts, "three", 4, key="app")
    await publish(parts)


async def test_what_a_key_trained(parts: Parts) -> None:
    await three_versions(parts)
    thumbs(parts, "late", 2, key="shop")
    found = senders.of_sender(parts.database, SHOP)
    assert (found.feedback, found.users, found.retracted) == (5, 5, 0)
    # A thumb is a sample of the policy's and one of the reward model's.
    assert found.samples == {"open": 7, "used": 3}
    assert (found.policy.direct, found.policy.descended) == ((2,), (3,))
    assert found.shares == (ShareOfVersion(version=2, samples=3, share=0.75),)
    assert found.rebuild_from == 1
    assert senders.of_sender(parts.database, Sender(api_key="key-shop")) == found
    acme = senders.of_sender(parts.database, Sender(tenant="acme"))
    assert (acme.feedback, acme.rebuild_from) == (3, 1)
    assert senders.of_sender(parts.database, Sender(api_key="nobody")).feedback == 0


async def test_training_begins_again_before_a_key_and_without_it(parts: Parts) -> None:
    await three_versions(parts)
    thumbs(parts, "late", 2, key="shop")
    answer = await rebuilding(parts).before_sender(SHOP, "eve")
    assert (answer.policy_version, answer.restored_version) == (1, 1)
    assert (list(answer.left_behind), answer.feedback_retracted) == ([2, 3], 5)
    assert await parts.release.stable("policy") == 1
    assert parts.trainer.learned == [f"kto:one-f{n}" for n in range(4)]
    while await parts.turn():
        pass
    again = parts.trainer.learned[4:]
    assert sorted(again)[:4] == [f"kto:three-f{n}" for n in range(4)]
    assert not [name for name in again if name.startswith(("kto:two-f", "kto:late"))]
    after = senders.of_sender(parts.database, SHOP)
    assert (after.retracted, after.rebuild_from, set(after.samples)) == (5, None, {"retracted"})
    # What a version had learned from them stays on record.
    assert after.shares == (ShareOfVersion(version=2, samples=3, share=0.75),)
    decided = decisions.of_version(parts.database, "policy", 2)
    assert [(d.kind, d.actor) for d in decided][-1] == ("rebuild", "eve")


async def test_steps_that_no_version_has_yet_become_one_first(parts: Parts) -> None:
    parts.training_run.restore()
    thumbs(parts, "two", 4, key="shop")
    assert await parts.turn()
    answer = await rebuilding(parts).before_sender(SHOP, "eve")
    assert (answer.policy_version, list(answer.left_behind)) == (0, [1])


async def test_what_was_not_learned_from_is_retracted_and_nothing_rebuilt(parts: Parts) -> None:
    thumbs(parts, "one", 4, key="app")
    await publish(parts)
    thumbs(parts, "late", 1, key="shop")
    answer = await rebuilding(parts).before_sender(SHOP, "eve")
    assert (answer.policy_version, answer.feedback_retracted) == (1, 1)
    assert list(answer.left_behind) == []
    again = await rebuilding(parts).before_sender(SHOP, "eve")
    assert (again.policy_version, again.feedback_retracted) == (1, 0)
    with pytest.raises(NotFound, match="no feedback of the key 'shpo'"):
        await rebuilding(parts).before_sender(Sender(api_key="shpo"), "eve")


async def test_a_pair_goes_with_one_of_its_thumbs(parts: Parts) -> None:
    both = [make_rollout(c, group_id="g") for c in ("c1", "c2")]
    recorder.record_rollouts(parts.database, both, 0.0)
    for number, (key, up) in enumerate((("app", True), ("shop", False)), start=1):
        thumb = dataclasses.replace(
            make_thumb(f"f{number}", f"c{number}", up, user="ann"), api_key_name=key
        )
        recorder.record_feedback(parts.database, [(thumb, number)], 0.0)
    parts.clock.now += 60
    await publish(parts)
    assert any(name.startswith("dpo:") for name in parts.trainer.learned)
    (share,) = senders.of_sender(parts.database, SHOP).shares
    # The pair and their own thumb, of the pair and two thumbs.
    assert share.samples == 2
    retract(parts, "f2")
    assert [part.samples for part in version_shares.retracted_shares(parts.database)] == [2]


async def test_what_was_retracted_after_training_is_counted(parts: Parts) -> None:
    await three_versions(parts)
    thumbs(parts, "four", 4, key="app")
    assert version_shares.retracted_shares(parts.database) == []
    assert await parts.turn()
    retract(parts, "two-f0", "four-f1", "three-f0")
    assert version_shares.retracted_shares(parts.database) == [
        ShareOfVersion(version=2, samples=1, share=0.25),
        ShareOfVersion(version=3, samples=1, share=0.25),
    ]
    parts.training_run.commit()
    assert version_shares.retracted_shares(parts.database)[0].version == 0
    gauges.refresh(parts.database)
    assert metrics.retracted_samples._value.get() == 3
    assert metrics.retracted_share._value.get() == 0.25


async def test_too_much_retracted_makes_the_learner_rebuild(parts: Parts) -> None:
    await three_versions(parts)
    monitor = RetractionMonitor(
        parts.database, GuardSettings(rebuild_retracted=0.5), rebuilding(parts).to_version
    )
    for feedback_id in ("two-f0", "two-f1"):
        assert await monitor.check_retractions() is None
        retract(parts, feedback_id)
    off = RetractionMonitor(parts.database, GuardSettings(), rebuilding(parts).to_version)
    assert off.version_to_rebuild_from() is None
    parts.bus.go_down()
    assert await monitor.check_retractions() is None
    parts.bus.come_back()
    assert await monitor.check_retractions() == 1
    assert await parts.release.stable("policy") == 1
    (decided,) = [
        d for d in decisions.of_version(parts.database, "policy", 3) if d.kind == "rebuild"
    ]
    assert decided.actor == "retractions"
    assert await monitor.check_retractions() is None


async def test_while_the_bus_is_away_a_rebuild_can_be_repeated(parts: Parts) -> None:
    await three_versions(parts)
    parts.bus.go_down()
    with pytest.raises(Unavailable):
        await rebuilding(parts).before_sender(SHOP, "eve")
    parts.bus.come_back()
    answer = await rebuilding(parts).before_sender(SHOP, "eve")
    assert (answer.policy_version, list(answer.left_behind)) == (1, [2, 3])
