"""SIGKILL while a checkpoint of full weights is written beside a step: nothing lost, nothing twice.

The process that is killed trains a real model, and stops in the middle of its second checkpoint.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.learner_parts import Parts

from tuneloop.learner.trainer import checkpoint_shards
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings
from tuneloop.learner.training_run import TrainingRun
from tuneloop.policies import WeightsKind

PYTHONPATH = os.pathsep.join((str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")))


def make_run(parts: Parts, model: Path) -> TrainingRun:
    settings = TrainerSettings(kind=WeightsKind.FULL, learning_rate=1e-3, threads=1)
    training_run = TrainingRun(
        model="policy",
        policy="tuneloop",
        trainer=PolicyTrainer(model, settings),
        database=parts.database,
        checkpoints=parts.settings.data_dir / "checkpoints" / "policy",
        keep_checkpoints=2,
        beside=True,
        clock=parts.clock,
    )
    training_run.restore()
    return training_run


def take_step(training_run: TrainingRun, parts: Parts) -> bool:
    batch = training_run.next_batch(parts.batches)
    return batch is not None and not training_run.train(batch).skipped


def main(folder: Path, model: Path) -> None:
    """Commit a step, stop in the second one's checkpoint, and take a third."""
    parts = Parts(folder=folder)
    training_run = make_run(parts, model)
    take_step(training_run, parts)
    training_run.commit()
    digest_of = checkpoint_shards.digest_of

    def stop(path: Path) -> checkpoint_shards.Digest:
        # One file of tensors is on disk.
        print("writing", flush=True)
        time.sleep(600)
        return digest_of(path)

    checkpoint_shards.digest_of = stop
    take_step(training_run, parts)
    assert not training_run.begin_commit(1)
    take_step(training_run, parts)
    print("stepped", flush=True)
    time.sleep(600)


@pytest.mark.timeout(200)
def test_a_kill_in_the_middle_leaves_the_last_checkpoint_and_all_samples(
    tiny_policy: Path, tmp_path: Path
) -> None:
    straight, killed = (Parts(folder=tmp_path / name) for name in ("straight", "killed"))
    for parts in (straight, killed):
        parts.thumbs(0, 12)
    run = make_run(straight, tiny_policy)
    while take_step(run, straight):
        run.commit()
    killed.database.close()

    command = [sys.executable, __file__, str(killed.folder), str(tiny_policy)]
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        said = {process.stdout.readline().strip(), process.stdout.readline().strip()}
        process.send_signal(signal.SIGKILL)
    assert said == {"writing", "stepped"}

    parts = killed.again()
    folder = parts.settings.data_dir / "checkpoints" / "policy"
    assert list((folder / ".unfinished-step-00000002" / "policy").glob("*.safetensors"))
    assert parts.used() == {f"f{n}": 1 for n in range(4)}
    again = make_run(parts, tiny_policy)
    assert again.step == 1
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000000", "step-00000001"]
    while take_step(again, parts):
        again.commit()
    # `used` fails where a sample was used twice.
    assert parts.used() == straight.used() == {f"f{n}": 1 + n // 4 for n in range(12)}
    states = [each.trainer.state() for each in (run, again)]  # type: ignore[attr-defined]
    for mine, other in ((s.model, t.model) for s, t in (states,)):
        assert all(torch.equal(mine[name], other[name]) for name in mine)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
