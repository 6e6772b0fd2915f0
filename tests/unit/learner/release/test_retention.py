"""What is deleted in time, and what that leaves: training data, lineage, ways back."""

import os
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from support.learner_events import make_rollout, make_score
from support.learner_parts import Parts

from tuneloop.errors import FailedPrecondition, Unavailable
from tuneloop.learner.ledger.accounting import forget_user, lineage, retention, versions
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.ledger.schema import rollouts, samples, scores
from tuneloop.learner.release.retention.pruner import Pruner, sizes_of
from tuneloop.learner.release.retention.settings import RetentionSettings

DAY = 86_400


def pruner(parts: Parts, **settings: object) -> Pruner:
    return Pruner(
        parts.database,
        parts.store,
        RetentionSettings.model_validate(settings),
        parts.settings.data_dir,
        clock=parts.clock,
    )


def names(parts: Parts, *, full: bool = True) -> set[str]:
    """Rollouts in the ledger that still have their texts, or all of them."""
    query = select(rollouts.c.completion_id)
    if full:
        query = query.where(rollouts.c.completion_tokens != b"")
    with parts.database.read() as connection:
        return set(connection.execute(query).scalars())


async def test_old_rollouts_that_nobody_judged_go_and_judged_ones_stay(tmp_path: Path) -> None:
    parts = Parts(folder=tmp_path)
    parts.thumbs(0, 2)
    alone = [make_rollout("alone"), make_rollout("waiting")]
    recorder.record_rollouts(parts.database, alone, parts.clock())
    recorder.record_scores(parts.database, [make_score("waiting")], parts.clock())
    assert ready.counts(parts.database, "ppo").ready == 1
    finished = alone[0].finished_time.timestamp()
    parts.clock.now = finished + 29 * DAY
    pruner(parts).prune()
    assert names(parts) == {"c0", "c1", "alone", "waiting"}
    parts.clock.now = finished + 31 * DAY
    pruner(parts, rollout_days=None).prune()
    assert names(parts) == {"c0", "c1", "alone", "waiting"}
    pruner(parts).prune()
    assert names(parts, full=False) == {"c0", "c1"}
    assert ready.counts(parts.database, "kto").ready == 2
    with parts.database.read() as connection:
        assert connection.execute(select(scores.c.completion_id)).all() == []
        left = connection.execute(select(samples.c.completion_id)).scalars()
        assert set(left) == {"c0", "c1"}


async def test_what_a_step_used_is_emptied_and_its_lineage_stays(tmp_path: Path) -> None:
    parts = Parts(folder=tmp_path, options={"policy_gradient_batch_size": 2})
    parts.training_run.restore()
    asked = [make_rollout(f"c{n}", user="ann") for n in range(2)]
    recorder.record_rollouts(parts.database, asked, parts.clock())
    scored = [make_score(f"c{n}", reward=float(n)) for n in range(2)]
    recorder.record_scores(parts.database, scored, parts.clock())
    parts.clock.now += 60
    assert await parts.turn()
    parts.clock.now += parts.settings.publish_every_seconds
    await parts.turn()
    parts.clock.now = asked[0].finished_time.timestamp() + 31 * DAY
    used = lineage.uses_of(parts.database, "policy", 1)
    assert len(used) == 2
    pruner(parts).prune()
    assert names(parts) == set()
    assert names(parts, full=False) == {"c0", "c1"}
    assert lineage.uses_of(parts.database, "policy", 1) == used
    # It is not trained on again when the version is taken back.
    await parts.release.quarantine(1, "worse")
    await parts.turn()
    assert ready.counts(parts.database, "ppo").ready == 0
    assert forget_user.forget_user(parts.database, "ann", parts.clock()).rollouts == 2


async def test_the_newest_rollouts_are_kept_up_to_a_number(tmp_path: Path) -> None:
    parts = Parts(folder=tmp_path)
    asked = [
        replace(rollout, finished_time=rollout.finished_time + timedelta(seconds=n))
        for n, rollout in enumerate(map(make_rollout, [f"c{n}" for n in range(1200)]))
    ]
    recorder.record_rollouts(parts.database, asked, parts.clock())
    assert retention.prune_rollouts(parts.database, 0.0, 5).deleted == 1195
    assert names(parts) == {f"c{n}" for n in range(1195, 1200)}
    assert retention.prune_rollouts(parts.database, 0.0, 5).deleted == 0


async def publish(parts: Parts, number: int) -> None:
    parts.thumbs(8 * number, 8)
    await parts.turn()
    await parts.turn()


async def test_old_weights_go_and_the_ways_back_stay(tmp_path: Path) -> None:
    parts = Parts(folder=tmp_path)
    parts.training_run.restore()
    for number in range(5):
        await publish(parts, number)
    assert parts.store.versions("tuneloop") == [1, 2, 3, 4, 5]
    pruner(parts, versions=4).prune()
    assert parts.store.versions("tuneloop") == [2, 3, 4, 5]
    pruner(parts, versions=1).prune()
    # 5 serves, and 4 is what a roll-back goes to.
    assert parts.store.versions("tuneloop") == [4, 5]
    with pytest.raises(FailedPrecondition, match="weights of version 2 were deleted"):
        await parts.release.promote(2, "ann")
    assert await parts.release.roll_back(None, "ann") == 4
    # Nothing older is there to go back to but the base model.
    assert await parts.release.roll_back(None, "ann") == 0
    assert len(versions.list_versions(parts.database, "policy", limit=9)) == 5
    # Numbers are never given again.
    await publish(parts, 5)
    await publish(parts, 6)
    assert max(parts.store.versions("tuneloop")) == 7


async def test_weights_are_kept_up_to_a_size(tmp_path: Path) -> None:
    parts = Parts(folder=tmp_path)
    parts.training_run.restore()
    for number in range(4):
        await publish(parts, number)
    sizes = [
        sum(file.bytes for file in parts.store.manifest("tuneloop", v).files) for v in range(1, 5)
    ]
    pruner(parts, version_gib=(sum(sizes[1:]) + 1) / 2**30).prune()
    assert parts.store.versions("tuneloop") == [2, 3, 4]


async def test_a_store_that_is_away_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(folder=tmp_path)
    parts.training_run.restore()
    for number in range(4):
        await publish(parts, number)

    def away(policy: str, version: int) -> None:
        raise Unavailable("weight store: it is away")

    with monkeypatch.context() as patch:
        patch.setattr(parts.store, "delete", away)
        pruner(parts, versions=1).prune()
    assert parts.store.versions("tuneloop") == [1, 2, 3, 4]
    pruner(parts, versions=1).prune()
    assert parts.store.versions("tuneloop") == [3, 4]


def test_the_disk_is_shown_by_what_lies_on_it(tmp_path: Path) -> None:
    parts = Parts(folder=tmp_path)
    (parts.settings.data_dir / "outbox").mkdir(parents=True, exist_ok=True)
    (parts.settings.data_dir / "outbox" / "file").write_bytes(b"12345")
    sizes = sizes_of(parts.settings.data_dir)
    assert sizes["outbox"] == 5
    assert sizes["ledger"] > 0


def test_folders_may_vanish_while_sizes_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ledger.db").write_bytes(b"x" * 10)
    for name in ("kept", "gone"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "weights").write_bytes(b"x" * 100)
    scandir = os.scandir

    def vanishing(path: str | int) -> object:
        if str(path).endswith("gone"):
            shutil.rmtree(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert sizes_of(tmp_path) == {"ledger": 10, "checkpoints": 100}
