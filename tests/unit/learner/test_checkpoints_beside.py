"""Checkpoints that are written beside the next steps: every sample is used once all the same."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.learner_parts import Parts

from tuneloop.learner.ledger.accounting import lineage, versions


class Gate:
    """Holds up a checkpoint until it is opened."""

    def __init__(self, parts: Parts) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        parts.trainer.while_writing = self._pass

    def _pass(self) -> None:
        self.reached.set()
        assert self.opened.wait(60)


def make_parts(folder: Path, **options: Any) -> Parts:
    parts = Parts(folder=folder, beside=True, options={"publish_every_steps": 100, **options})
    parts.training_run.restore()
    return parts


def checkpoints(parts: Parts) -> list[str]:
    folder = parts.settings.data_dir / "checkpoints" / "policy"
    return sorted(path.name for path in folder.iterdir() if path.name[0] != ".")


async def test_steps_go_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    gate = Gate(parts)
    parts.thumbs(0, 4)
    assert await parts.turn()
    assert gate.reached.wait(60)
    # Its samples are not used in the ledger, and not offered again either.
    assert not await parts.turn()
    parts.thumbs(4, 8)
    assert await parts.turn()
    assert await parts.turn()
    assert parts.trainer.learned == [f"kto:f{n}" for n in range(12)]
    assert parts.used() == {}
    gate.opened.set()
    await settled(parts, 12)
    # The second has both steps that were taken beside the first.
    assert parts.used() == {f"f{n}": 1 + n // 4 for n in range(12)}
    assert checkpoints(parts)[1:] == ["step-00000001", "step-00000003"]
    parts = parts.again()
    parts.training_run.restore()
    assert parts.training_run.step == 3
    assert len(parts.trainer.learned) == 12
    assert not await parts.turn()


async def settled(parts: Parts, samples: int) -> None:
    for _ in range(600):
        await parts.turn()
        if len(parts.used()) == samples:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(parts.used())


async def test_what_is_staged_is_what_was(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    gate = Gate(parts)
    parts.thumbs(0, 8)
    await parts.turn()
    await parts.turn()
    gate.opened.set()
    await parts.loop.drain()
    folder = parts.settings.data_dir / "checkpoints" / "policy"
    parts.trainer.load_checkpoint(folder / "step-00000001")
    assert parts.trainer.learned == [f"kto:f{n}" for n in range(4)]


async def test_a_stop_waits_for_all_of_it(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    parts.trainer.while_writing = lambda: time.sleep(0.2)
    parts.thumbs(0, 8)
    await parts.turn()
    await parts.turn()
    await parts.loop.drain()
    assert len(parts.used()) == 8


async def test_a_checkpoint_that_cannot_be_written_commits_nothing(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)

    def fill_up() -> None:
        raise OSError("no space left on device")

    parts.trainer.while_writing = fill_up
    parts.thumbs(0, 4)
    with pytest.raises(OSError, match="no space left"):
        await settled(parts, 4)
    assert parts.used() == {}
    assert parts.training_run.uncommitted_ids("kto") == [f"f{n}" for n in range(4)]
    parts.trainer.while_writing = lambda: None
    await settled(parts, 4)
    assert parts.trainer.learned == [f"kto:f{n}" for n in range(4)]


async def test_going_back_forgets_the_steps_of_a_checkpoint_in_progress(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    parts.trainer.while_writing = lambda: time.sleep(0.2)
    parts.thumbs(0, 4)
    await parts.turn()
    parts.training_run.restore()
    assert (parts.training_run.step, parts.trainer.learned) == (0, [])
    assert checkpoints(parts) == ["step-00000000"]
    await settled(parts, 4)
    assert parts.trainer.learned == [f"kto:f{n}" for n in range(4)]


async def test_a_step_to_weights_that_are_not_finite_undoes_no_other(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    parts.trainer.while_writing = lambda: time.sleep(0.2)
    parts.trainer.breaks_on = {"f4"}
    parts.thumbs(0, 8)
    await parts.turn()
    await parts.turn()
    assert parts.used() == {f"f{n}": 1 for n in range(4)}
    assert parts.trainer.learned == [f"kto:f{n}" for n in range(4)]


async def test_a_version_is_made_beside_its_checkpoint_and_recorded_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = make_parts(tmp_path, publish_every_steps=1)
    gate = Gate(parts)
    save_weights, recorded = parts.trainer.save_weights, versions.add_version
    committed: list[int] = []

    def save(folder: Path) -> None:
        assert parts.used() == {}
        save_weights(folder)
        gate.opened.set()

    def record(*arguments: Any, **named: Any) -> None:
        committed.append(len(parts.used()))
        recorded(*arguments, **named)

    monkeypatch.setattr(parts.trainer, "save_weights", save)
    monkeypatch.setattr(versions, "add_version", record)
    parts.thumbs(0, 4)
    await parts.turn()
    assert committed == [4]
    assert len(lineage.uses_of(parts.database, "policy", 1)) == 4
