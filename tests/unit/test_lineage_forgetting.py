"""Forgetting while the learner works: no step slips between, no version goes unnamed."""

import asyncio
from pathlib import Path

import pytest
from learner_events import make_rollout, make_thumb
from learner_parts import Parts
from sqlalchemy import select

from tuneloop.bus.subjects import DEAD_LETTERS, of_user
from tuneloop.errors import InvalidRequest, Unavailable
from tuneloop.learner.forgetting import Forgetting
from tuneloop.learner.ledger import forget, record
from tuneloop.learner.ledger.schema import rollouts


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(
        folder=tmp_path, options={"checkpoint_every_steps": 100, "publish_every_steps": 100}
    )


def thumbs_of(parts: Parts, user: str, count: int) -> None:
    names = [f"{user}-c{n}" for n in range(count)]
    record.record_rollouts(parts.database, [make_rollout(c, user=user) for c in names], 0.0)
    thumbs = [(make_thumb(f"{c}-f", c, user=user), n) for n, c in enumerate(names)]
    record.record_feedback(parts.database, thumbs, 0.0)


def forgetting(parts: Parts) -> Forgetting:
    return Forgetting(parts.database, parts.bus, parts.loop, clock=parts.clock)


async def test_steps_that_no_version_has_yet_become_one_first(parts: Parts) -> None:
    thumbs_of(parts, "ann", 4)
    assert await parts.turn()
    assert parts.trainee.uncommitted.taken
    answer = await forgetting(parts).forget("ann")
    assert list(answer.policy_versions) == [1]
    assert answer.rebuild_from == 0
    assert (answer.rollouts_removed, answer.feedback_removed) == (4, 4)
    thumbs_of(parts, "bob", 4)
    assert await parts.turn()
    assert list((await forgetting(parts).forget("ann")).policy_versions) == [1]


async def test_of_who_was_not_learned_from_no_version_is_made(parts: Parts) -> None:
    thumbs_of(parts, "bob", 4)
    await parts.turn()
    thumbs_of(parts, "ann", 1)
    answer = await forgetting(parts).forget("ann")
    assert (list(answer.policy_versions), answer.HasField("rebuild_from")) == ([], False)
    assert parts.trainee.unpublished_steps == 1


async def test_a_turn_in_progress_ends_first(parts: Parts) -> None:
    thumbs_of(parts, "ann", 4)
    turning = asyncio.create_task(parts.turn())
    await asyncio.sleep(0)
    answer = await forgetting(parts).forget("ann")
    assert await turning
    assert list(answer.policy_versions) == [1]


async def test_while_the_bus_is_away_nothing_is_forgotten_by_halves(parts: Parts) -> None:
    thumbs_of(parts, "ann", 1)
    parts.bus.go_down()
    with pytest.raises(Unavailable):
        await forgetting(parts).forget("ann")
    with parts.database.read() as connection:
        assert connection.execute(select(rollouts.c.completion_id)).scalars().all() == ["ann-c0"]
    assert forget.records(parts.database, "ann") == []
    with pytest.raises(InvalidRequest, match="user_hash"):
        await forgetting(parts).forget("a.b")


async def test_dead_letters_are_about_somebody(parts: Parts) -> None:
    thumbs_of(parts, "ann", 4)
    parts.trainer.refuses.add("ann-c1-f")
    await parts.turn()
    (letter,) = parts.bus.streams[DEAD_LETTERS].events
    assert letter.subject == "tuneloop.dead.learner-tuneloop-samples.ann"
    assert b"user_hash" not in letter.data
    assert (DEAD_LETTERS, "tuneloop.dead.*.ann") in of_user("ann")
    answer = await forgetting(parts).forget("ann")
    assert answer.events_purged == 1
    assert parts.bus.streams[DEAD_LETTERS].events == []
