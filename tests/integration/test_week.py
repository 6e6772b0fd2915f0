"""A week in a minute: what a service that runs on keeps in memory and on its disk."""

import gc
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import func, select
from support.learner_events import make_rollout
from support.learner_parts import Parts

from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.schema import rollouts
from tuneloop.learner.release.retention.pruner import Pruner, sizes_of
from tuneloop.learner.release.retention.settings import RetentionSettings

MINUTES, DAY = 60.0, 86_400.0
ROUND = 60 * MINUTES
UNJUDGED = 10
KEPT = 20

pytestmark = pytest.mark.slow


async def test_a_week_leaves_the_newest_versions_and_rollouts(tmp_path: Path) -> None:
    parts = Parts(folder=tmp_path)
    parts.training_run.restore()
    settings = RetentionSettings(rollout_days=1.0, versions=KEPT)
    pruner = Pruner(
        parts.database, parts.store, settings, parts.settings.data_dir, clock=parts.clock
    )
    memory, disk = [], []
    rounds = int(7 * DAY / ROUND)
    for number in range(rounds):
        parts.clock.now += ROUND
        finished = datetime.fromtimestamp(parts.clock.now, UTC)
        unjudged = [make_rollout(f"u{number}-{n}") for n in range(UNJUDGED)]
        recorder.record_rollouts(
            parts.database, [replace(r, finished_time=finished) for r in unjudged], parts.clock()
        )
        parts.thumbs(8 * number, 8)
        await parts.turn()
        await parts.turn()
        pruner.prune()
        if number in (rounds // 2, rounds - 1):
            gc.collect()
            memory.append(len(gc.get_objects()))
            disk.append(sizes_of(tmp_path))
    assert parts.store.versions("tuneloop") == list(range(rounds - KEPT + 1, rounds + 1))
    with parts.database.read() as connection:
        unjudged_left = connection.execute(
            select(func.count()).where(rollouts.c.completion_id.startswith("u"))
        ).scalar_one()
    assert unjudged_left <= UNJUDGED * (DAY / ROUND + 1)
    half, whole = disk
    # The trainer's weights say all it learned, so the newest are the largest.
    assert (
        whole["weights"] < KEPT * sizes_of(tmp_path / "weights" / "tuneloop")[f"{rounds:08d}"] + 1
    )
    # The judgements stay: what the ledger grows by is theirs, a few kilobytes each.
    assert whole["learner"] - half["learner"] < 8 * rounds / 2 * 8_000
    assert memory[1] - memory[0] < 100 * rounds / 2
