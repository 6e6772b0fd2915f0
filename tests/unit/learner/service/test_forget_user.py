"""Forgetting while the learner works: no step slips between, no version goes unnamed."""

import asyncio
import shutil
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import select
from support.learner_events import make_rollout, make_thumb, make_turn
from support.learner_parts import Parts

from tuneloop import wire
from tuneloop.bus import subjects
from tuneloop.bus.subjects import DEAD_LETTERS, FEEDBACK, of_user
from tuneloop.errors import FailedPrecondition, InvalidRequest, Unavailable
from tuneloop.learner.ledger.accounting import decisions, downstream, forget_user, lineage
from tuneloop.learner.ledger.accounting.forget_user import PersonalData
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.schema import rollouts
from tuneloop.learner.service.forget_user import ForgetUser
from tuneloop.learner.service.rebuild import Rebuild


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(
        folder=tmp_path, options={"checkpoint_every_steps": 100, "publish_every_steps": 100}
    )


def thumbs_of(parts: Parts, user: str, count: int) -> None:
    names = [f"{user}-c{n}" for n in range(count)]
    recorder.record_rollouts(parts.database, [make_rollout(c, user=user) for c in names], 0.0)
    thumbs = [(make_thumb(f"{c}-f", c, user=user), n) for n, c in enumerate(names)]
    recorder.record_feedback(parts.database, thumbs, 0.0)


def forgetting(parts: Parts) -> ForgetUser:
    return ForgetUser(parts.database, parts.bus, parts.loop)


async def test_steps_that_no_version_has_yet_become_one_first(parts: Parts) -> None:
    thumbs_of(parts, "ann", 4)
    assert await parts.turn()
    assert parts.training_run.uncommitted.taken
    answer = await forgetting(parts).forget_user("ann")
    assert list(answer.policy_versions) == [1]
    assert answer.rebuild_from == 0
    assert (answer.rollouts_removed, answer.feedback_removed) == (4, 4)
    thumbs_of(parts, "bob", 4)
    assert await parts.turn()
    assert list((await forgetting(parts).forget_user("ann")).policy_versions) == [1]


async def version_of(parts: Parts, user: str) -> None:
    thumbs_of(parts, user, 4)
    assert await parts.turn()
    async with parts.loop.paused_turns():
        await parts.loop.publish_soon("policy")
    await parts.turn()


async def test_training_begins_again_before_a_user_on_what_is_left(parts: Parts) -> None:
    for user in ("bob", "ann", "cat"):
        await version_of(parts, user)
    assert await parts.release.stable("policy") == 3
    assert (await forgetting(parts).forget_user("ann")).rebuild_from == 1
    rebuilding = Rebuild(parts.database, parts.release, parts.loop)
    answer = await rebuilding.before_user("ann", "eve")
    assert (answer.policy_version, answer.restored_version) == (1, 1)
    assert (list(answer.left_behind), answer.samples_put_back) == ([2, 3], 4)
    assert await parts.release.stable("policy") == 1
    assert parts.trainer.learned == [f"kto:bob-c{n}-f" for n in range(4)]
    assert await parts.turn()
    assert parts.trainer.learned[4:] == [f"kto:cat-c{n}-f" for n in range(4)]
    assert downstream.of_user(parts.database, "ann").rebuild_from is None
    # What they had learned stays on the record of the versions that were left.
    assert [use.sample_id for use in lineage.uses_of(parts.database, "policy", 3)] == [
        f"cat-c{n}-f" for n in range(4)
    ]
    assert downstream.of_user(parts.database, "cat").policy.direct == (3,)
    decided = decisions.of_version(parts.database, "policy", 2)
    assert [(d.kind, d.actor) for d in decided][-1] == ("rebuild", "eve")
    with pytest.raises(FailedPrecondition, match="has not learned from this user"):
        await rebuilding.before_user("ann", "eve")


async def test_where_the_checkpoint_is_gone_the_base_model_is_begun_with(parts: Parts) -> None:
    parts.training_run.restore()
    for user in ("bob", "ann", "cat"):
        await version_of(parts, user)
    shutil.rmtree(parts.settings.data_dir / "checkpoints" / "policy" / "step-00000001")
    rebuilding = Rebuild(parts.database, parts.release, parts.loop)
    answer = await rebuilding.to_version(1, "eve")
    assert (answer.policy_version, answer.restored_version) == (1, 0)
    assert answer.samples_put_back == 12
    assert parts.trainer.learned == []


async def test_only_what_the_present_version_grew_from_can_be_rebuilt(parts: Parts) -> None:
    await version_of(parts, "bob")
    rebuilding = Rebuild(parts.database, parts.release, parts.loop)
    for version in (1, 2):
        with pytest.raises(InvalidRequest, match="grew from"):
            await rebuilding.to_version(version, "eve")


async def test_of_who_was_not_learned_from_no_version_is_made(parts: Parts) -> None:
    thumbs_of(parts, "bob", 4)
    await parts.turn()
    thumbs_of(parts, "ann", 1)
    answer = await forgetting(parts).forget_user("ann")
    assert (list(answer.policy_versions), answer.HasField("rebuild_from")) == ([], False)
    assert parts.training_run.unpublished_steps == 1


async def test_a_turn_in_progress_ends_first(parts: Parts) -> None:
    thumbs_of(parts, "ann", 4)
    turning = asyncio.create_task(parts.turn())
    await asyncio.sleep(0)
    answer = await forgetting(parts).forget_user("ann")
    assert await turning
    assert list(answer.policy_versions) == [1]


async def test_while_the_bus_is_away_nothing_is_forgotten_by_halves(parts: Parts) -> None:
    thumbs_of(parts, "ann", 1)
    parts.bus.go_down()
    with pytest.raises(Unavailable):
        await forgetting(parts).forget_user("ann")
    with parts.database.read() as connection:
        assert connection.execute(select(rollouts.c.completion_id)).scalars().all() == ["ann-c0"]
    assert forget_user.records(parts.database, PersonalData(user_hash="ann")) == []
    with pytest.raises(InvalidRequest, match="user_hash"):
        await forgetting(parts).forget_user("a.b")


async def test_a_log_that_somebody_reads_is_not_called_emptied(parts: Parts) -> None:
    thumbs_of(parts, "ann", 1)
    with parts.database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=50")
    ledger = parts.settings.data_dir / "ledger.db"

    def log_bytes() -> int:
        return ledger.with_name("ledger.db-wal").stat().st_size

    with sqlite3.connect(ledger, isolation_level=None) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM rollouts").fetchall()
        with pytest.raises(Unavailable, match="until nobody reads it"):
            await forgetting(parts).forget_user("ann")
        assert log_bytes()
        reader.execute("COMMIT")
    await forgetting(parts).forget_user("ann")
    assert log_bytes() == 0


async def test_dead_letters_are_about_somebody(parts: Parts) -> None:
    thumbs_of(parts, "ann", 4)
    parts.trainer.refuses.add("ann-c1-f")
    await parts.turn()
    (letter,) = parts.bus.streams[DEAD_LETTERS].events
    assert letter.subject == "tuneloop.dead.learner-tuneloop-samples.ann"
    assert b"user_hash" not in letter.data
    assert (DEAD_LETTERS, "tuneloop.dead.*.ann") in of_user("ann")
    answer = await forgetting(parts).forget_user("ann")
    assert answer.events_purged == 1
    assert parts.bus.streams[DEAD_LETTERS].events == []


async def test_of_a_session_the_feedback_is_erased_from_the_stream_too(parts: Parts) -> None:
    given = [
        make_thumb("whole", "", user="ann", session_id="s", second=9),
        make_thumb("turn", "c0", user="bob"),
        make_thumb("other", "", user="ann", session_id="o", second=9),
    ]
    for event in given:
        subject = subjects.feedback("tuneloop", "thumb", event.user_hash, event.feedback_id)
        await parts.bus.publish(subject, wire.encode_feedback(event), event_id=event.feedback_id)
    turns = [make_turn("c0", 0), make_turn("c1", 1), make_turn("o", 0, session_id="o")]
    recorder.record_rollouts(parts.database, turns, 0.0)
    recorder.record_feedback(parts.database, [(event, n) for n, event in enumerate(given)], 0.0)
    assert await parts.turn()
    answer = await forgetting(parts).forget_session("default", "s")
    assert (answer.rollouts_removed, answer.feedback_removed) == (2, 2)
    assert (answer.events_purged, list(answer.policy_versions)) == (2, [1])
    (kept,) = parts.bus.streams[FEEDBACK].events
    assert wire.decode_feedback(kept.data).feedback_id == "other"
    for tenant, session_id in (("default", ""), ("default", "a\nb"), ("a.b", "s")):
        with pytest.raises(InvalidRequest):
            await forgetting(parts).forget_session(tenant, session_id)
