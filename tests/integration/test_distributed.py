"""The same run on one rank and on two (gloo, CPU): the same losses, moments and checkpoints."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from offline_data import rows_for, write_jsonl
from policy_samples import SampleMaker

from tuneloop.learner.distributed import ALONE, World, follow, join, led, shares
from tuneloop.learner.policy_trainer import PolicyTrainer
from tuneloop.learner.trainer_settings import TrainerSettings
from tuneloop.policies import WeightsKind

OBJECTIVES = ("sft", "kto", "dpo", "ppo", "grpo")


def batch(objective: str, seed: int) -> Mapping[str, list[Any]]:
    maker = SampleMaker(seed)
    makers = {
        "sft": lambda: maker.demonstrations(5),
        "kto": lambda: maker.thumbs(7),
        "dpo": lambda: maker.pairs(3),
        "ppo": lambda: maker.scored(6),
        "grpo": lambda: maker.groups(3),
    }
    return {objective: makers[objective]()}


def settings(kind: WeightsKind) -> TrainerSettings:
    return TrainerSettings(
        kind=kind, learning_rate=1e-4, threads=1, kto_z="mismatched", ppo_epochs=2, token_budget=40
    )


def learn(folder: Path, kind: WeightsKind, saved: Path, world: World = ALONE) -> dict[str, Any]:
    """Steps of every objective, one alone at the end; weights and state midway."""
    trainer = PolicyTrainer(folder, settings(kind), world)
    found: dict[str, Any] = {"metrics": [], "midway": None}
    for number, objective in enumerate((*OBJECTIVES, *OBJECTIVES)):
        if number == len(OBJECTIVES):
            found["midway"] = trainer.state()
        found["metrics"].append(dict(trainer.step(batch(objective, number)).metrics))
    found["state"] = trainer.state()
    found["finite"] = trainer.finite()
    sequences = [sample.sequence for sample in SampleMaker(9).thumbs(3)]
    found["reference"] = trainer.model.compute_reference_logprobs(sequences, token_budget=30)
    trainer.save_weights(saved, base_model="tiny")
    trainer.load_state(found["midway"])
    found["resumed"] = dict(trainer.step(batch("sft", len(OBJECTIVES))).metrics)
    return found


def spawn(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Two processes of torchrun."""
    tests = str(Path(__file__).parents[1])
    torchrun = Path(sys.executable).with_name("torchrun")
    command = [str(torchrun), "--standalone", "--nproc-per-node", "2", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": tests, "OMP_NUM_THREADS": "1"} | environment,
    )


def main(folder: Path, output: Path) -> None:
    """What each of the two processes runs."""
    world = join()
    if not world.leads:
        follow(world)
        return
    with led(world):
        for kind in WeightsKind:
            found = learn(folder, kind, output / kind.value, world)
            (output / f"{kind.value}.pickle").write_bytes(pickle.dumps(found))


@pytest.fixture(scope="module")
def two_ranks(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("two-ranks")
    result = spawn([__file__, str(tiny_policy), str(output)])
    assert result.returncode == 0, result.stderr[-4000:]
    return output


@pytest.mark.parametrize("kind", WeightsKind)
def test_two_ranks_learn_what_one_learns(
    tiny_policy: Path, tmp_path: Path, two_ranks: Path, kind: WeightsKind
) -> None:
    """Every metric, the moments (sums of gradients) and the weights."""
    one = learn(tiny_policy, kind, tmp_path / "one")
    two = pickle.loads((two_ranks / f"{kind.value}.pickle").read_bytes())
    for expected, found in zip(one["metrics"], two["metrics"], strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert two["finite"]
    for ours, theirs in zip(one["reference"], two["reference"], strict=True):
        assert theirs == pytest.approx(ours, abs=1e-5)
    assert one["state"].model.keys() == two["state"].model.keys()
    for name, tensor in one["state"].model.items():
        assert torch.allclose(two["state"].model[name], tensor, rtol=0, atol=1e-5), name
    assert one["state"].optimizer.keys() == two["state"].optimizer.keys()
    for name, moment in one["state"].optimizer.items():
        assert torch.allclose(two["state"].optimizer[name], moment, rtol=1e-3, atol=1e-5), name
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert sorted(path.name for path in (two_ranks / kind.value).iterdir()) == files


@pytest.mark.parametrize("kind", WeightsKind)
def test_the_state_of_two_ranks_goes_on_with_two_and_with_one(
    tiny_policy: Path, two_ranks: Path, kind: WeightsKind
) -> None:
    found = pickle.loads((two_ranks / f"{kind.value}.pickle").read_bytes())
    trainer = PolicyTrainer(tiny_policy, settings(kind))
    trainer.load_state(found["midway"])
    expected = trainer.step(batch("sft", len(OBJECTIVES))).metrics
    assert found["resumed"] == pytest.approx(dict(expected), rel=1e-5, abs=1e-5)
    assert found["resumed"] == pytest.approx(found["metrics"][len(OBJECTIVES)], rel=1e-6)


def test_every_row_has_one_rank() -> None:
    sequences = [sample.sequence for sample in SampleMaker().thumbs(7)]
    for size in (1, 2, 3, 9):
        found = shares(sequences, size)
        assert len(found) == size
        assert sorted(row for share in found for row in share) == list(range(7))


@pytest.mark.parametrize(("algorithm", "kind"), [("grpo", "--full")])
def test_train_under_torchrun_is_train(
    tiny_policy: Path, tmp_path: Path, algorithm: str, kind: str
) -> None:
    """The command itself, on two ranks and on one."""
    data = write_jsonl(tmp_path / "data.jsonl", rows_for(algorithm))
    tuneloop = str(Path(sys.executable).with_name("tuneloop"))

    def arguments(output: str) -> list[str]:
        options = ["--model", str(tiny_policy), "--data", str(data)]
        options += ["--output", str(tmp_path / output), kind]
        values = ["batch_size=4", "threads=1", "save_steps=1"]
        if algorithm == "grpo":
            options += ["--reward", "offline_data:shorter"]
            values += ["max_completion_length=6", "samples_per_prompt=2"]
        return [tuneloop, "train", algorithm, *options, *(f"--set={value}" for value in values)]

    def figures(output: str) -> list[float]:
        lines = (tmp_path / output / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    both = spawn(["--no-python", *arguments("two")])
    assert both.returncode == 0, both.stderr[-4000:]
    tests = str(Path(__file__).parents[1])
    subprocess.run(
        arguments("one"),
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": tests, "OMP_NUM_THREADS": "1"},
    )
    assert figures("two") == pytest.approx(figures("one"), rel=1e-4, abs=1e-5)
    assert both.stderr.count("samples; loading") + both.stderr.count("prompts; loading") <= 1
    assert (tmp_path / "two" / "model.safetensors").is_file()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
