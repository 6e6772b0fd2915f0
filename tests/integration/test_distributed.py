"""The same run on one rank and on two (gloo, CPU): the same losses, moments and checkpoints."""

import asyncio
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.learner_parts import Parts
from support.learner_process import children_of
from support.offline_data import rows_for, write_jsonl
from support.policy_samples import SampleMaker

from tuneloop.errors import CorruptData
from tuneloop.learner.followers import follow
from tuneloop.learner.models.world import ALONE, World, dismiss_followers, join, shard_sequences
from tuneloop.learner.trainer import checkpoint
from tuneloop.learner.trainer.base import TrainerState
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.settings import TrainerSettings
from tuneloop.policies import WeightsKind

OBJECTIVES = ("sft", "kto", "dpo", "sdft", "ppo", "grpo")


def batch(objective: str, seed: int) -> Mapping[str, list[Any]]:
    maker = SampleMaker(seed)
    makers = {
        "sft": lambda: maker.demonstrations(5),
        "kto": lambda: maker.thumbs(7),
        "dpo": lambda: maker.pairs(3),
        "sdft": lambda: maker.comments(5),
        "ppo": lambda: maker.scored(6),
        "grpo": lambda: maker.groups(3),
    }
    return {objective: makers[objective]()}


def settings(kind: WeightsKind) -> TrainerSettings:
    return TrainerSettings(
        kind=kind, learning_rate=1e-4, threads=1, kto_z="mismatched", ppo_epochs=2, token_budget=40
    )


def learn(folder: Path, kind: WeightsKind, saved: Path, world: World = ALONE) -> dict[str, Any]:
    """Steps of every objective, with checkpoints midway and at the end, and a version."""
    trainer = PolicyTrainer(folder, settings(kind), world, base_model="tiny")
    found: dict[str, Any] = {"metrics": []}
    for number, objective in enumerate((*OBJECTIVES, *OBJECTIVES)):
        if number == len(OBJECTIVES):
            checkpoint.save(saved / "midway", {"policy": trainer})
        found["metrics"].append(dict(trainer.step(batch(objective, number)).metrics))
    checkpoint.save(saved / "end", {"policy": trainer})
    found["finite"] = trainer.finite()
    sequences = [sample.sequence for sample in SampleMaker(9).thumbs(3)]
    references = trainer.model.compute_references(sequences, token_budget=30)
    # Each rank computes a share of both.
    found["reference"] = [[*r.logprobs, *r.features] for r in references]
    likeliest = trainer.model.compute_likeliest(sequences, divergences=True)
    found["divergences"] = [d for one in likeliest for d in one.divergences]
    trainer.save_weights(saved / "version")
    trainer.load_weights(saved / "version")
    found["generated"] = generate(trainer)
    return found


def generate(trainer: PolicyTrainer) -> list[int]:
    tokens: list[int] = trainer.model.module.generate(
        torch.tensor([[1, 12, 13]]), max_new_tokens=6, do_sample=False
    )[0].tolist()
    return tokens


def resume(trainer: PolicyTrainer, folder: Path) -> dict[str, float]:
    """The first step after a checkpoint."""
    checkpoint.load(folder).put_back("policy", trainer)
    return dict(trainer.step(batch(OBJECTIVES[0], len(OBJECTIVES))).metrics)


def refusal(trainer: PolicyTrainer, good: Path, copy: Path, spoil: Callable[[Path], None]) -> str:
    """What is said of a copy of a checkpoint with its last file spoiled."""
    shutil.copytree(good, copy)
    spoil(max((copy / "policy").iterdir()))
    try:
        checkpoint.load(copy).put_back("policy", trainer)
    except CorruptData as error:
        return error.message
    return ""


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def duplicate(path: Path) -> None:
    shutil.copyfile(path, path.with_name("stranger.safetensors"))


async def online(folder: Path, data: Path, world: World = ALONE) -> Mapping[str, float]:
    """A loop with thumbs to learn from, restarted once; the last version's figures."""
    parts = Parts(folder=data)
    parts.thumbs(0, 8)
    for again in (False, True):
        parts = parts.again() if again else parts
        parts.training_run.trainer = PolicyTrainer(
            folder, settings(WeightsKind.FULL), world, base_model="tiny"
        )
        parts.training_run.restore()
        await parts.turn()
    return parts.store.manifest("tuneloop", 1).metrics


TORCHRUN = Path(sys.executable).with_name("torchrun")
TWO = (str(TORCHRUN), "--standalone", "--nproc-per-node", "2")
PYTHONPATH = os.pathsep.join((str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")))
ENVIRONMENT = os.environ | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}


def spawn(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Two processes of torchrun."""
    command = [*TWO, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, env=ENVIRONMENT
    )


def spawn_and_kill(arguments: list[str], once_there: Path) -> None:
    """The same, but kill -9 as soon as a file is there."""
    process = subprocess.Popen([*TWO, *arguments], stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    while not once_there.exists():
        assert process.poll() is None
        time.sleep(0.01)
    for pid in (*children_of(process.pid), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()


def main(folder: Path, output: Path, alone: Path) -> None:
    """What each of the two processes runs."""
    world = join()
    if not world.is_leader:
        follow(world)
        assert not torch.distributed.is_initialized()
        return
    with dismiss_followers(world):
        figures = asyncio.run(online(folder, output / "online", world))
        (output / "online.json").write_text(json.dumps(dict(figures)))
        for kind in WeightsKind:
            found = learn(folder, kind, output / kind.value, world)
            trainer = PolicyTrainer(folder, settings(kind), world)
            midway = output / kind.value / "midway"
            found["refusals"] = [
                refusal(trainer, midway, output / kind.value / spoil.__name__, spoil)
                for spoil in (cut, duplicate)
            ]
            found["resumed"] = resume(trainer, midway)
            found["resumed_from_one"] = resume(trainer, alone / kind.value / "midway")
            (output / f"{kind.value}.pickle").write_bytes(pickle.dumps(found))
    assert not torch.distributed.is_initialized()


@pytest.fixture(scope="module")
def one_rank(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("one-rank")
    for kind in WeightsKind:
        found = learn(tiny_policy, kind, output / kind.value)
        (output / f"{kind.value}.pickle").write_bytes(pickle.dumps(found))
    return output


@pytest.fixture(scope="module")
def two_ranks(tiny_policy: Path, one_rank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("two-ranks")
    result = spawn([__file__, str(tiny_policy), str(output), str(one_rank)])
    assert result.returncode == 0, result.stderr[-4000:]
    return output


def found_by(output: Path, kind: WeightsKind) -> dict[str, Any]:
    found: dict[str, Any] = pickle.loads((output / f"{kind.value}.pickle").read_bytes())
    return found


def state_at(checkpointed: Path, policy: Path, kind: WeightsKind) -> TrainerState:
    """What one rank reads from a checkpoint."""
    trainer = PolicyTrainer(policy, settings(kind))
    checkpoint.load(checkpointed).put_back("policy", trainer)
    return trainer.state()


@pytest.mark.slow
@pytest.mark.parametrize("kind", WeightsKind)
def test_two_ranks_learn_what_one_learns(
    tiny_policy: Path, one_rank: Path, two_ranks: Path, kind: WeightsKind
) -> None:
    """Every metric, the moments (sums of gradients) and the weights."""
    one, two = found_by(one_rank, kind), found_by(two_ranks, kind)
    for expected, found in zip(one["metrics"], two["metrics"], strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert two["finite"]
    for ours, theirs in zip(one["reference"], two["reference"], strict=True):
        assert theirs == pytest.approx(ours, abs=1e-5)
    assert two["divergences"] == pytest.approx(one["divergences"], rel=1e-3, abs=1e-5)
    assert two["generated"] == one["generated"]
    of_one, of_two = (
        state_at(output / kind.value / "end", tiny_policy, kind) for output in (one_rank, two_ranks)
    )
    assert of_one.model.keys() == of_two.model.keys()
    for name, tensor in of_one.model.items():
        assert torch.allclose(of_two.model[name], tensor, rtol=0, atol=1e-5), name
    assert of_one.optimizer.keys() == of_two.optimizer.keys()
    for name, moment in of_one.optimizer.items():
        assert torch.allclose(of_two.optimizer[name], moment, rtol=1e-3, atol=1e-5), name
    versions = [output / kind.value / "version" for output in (one_rank, two_ranks)]
    files = [sorted(path.name for path in version.iterdir()) for version in versions]
    assert files[0] == files[1]
    name = next(name for name in files[0] if name.endswith(".safetensors"))
    expected, found = (load_file(version / name) for version in versions)
    assert expected.keys() == found.keys()
    assert all(torch.allclose(found[n], expected[n], rtol=0, atol=1e-5) for n in expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", WeightsKind)
def test_a_checkpoint_goes_on_on_any_number_of_ranks(
    tiny_policy: Path, one_rank: Path, two_ranks: Path, kind: WeightsKind
) -> None:
    one, two = found_by(one_rank, kind), found_by(two_ranks, kind)
    trainer = PolicyTrainer(tiny_policy, settings(kind))
    from_two = resume(trainer, two_ranks / kind.value / "midway")
    assert resume(trainer, one_rank / kind.value / "midway") == one["metrics"][len(OBJECTIVES)]
    assert two["resumed"] == two["metrics"][len(OBJECTIVES)]
    assert from_two == pytest.approx(two["resumed"], rel=1e-5, abs=1e-5)
    assert two["resumed_from_one"] == pytest.approx(from_two, rel=1e-5, abs=1e-5)
    written = sorted((two_ranks / kind.value / "midway" / "policy").iterdir())
    assert {path.name[:11] for path in written} == {"shard-00001", "shard-00002"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", WeightsKind)
def test_a_spoiled_shard_is_refused_by_all_ranks(two_ranks: Path, kind: WeightsKind) -> None:
    """And they go on: what follows in that process is the test before."""
    short, strange = found_by(two_ranks, kind)["refusals"]
    assert re.match(r"checkpoint cut: policy: shard-00002-\S+ has \d+ bytes, not \d+", short)
    assert "policy: stranger.safetensors is a foreign file" in strange


@pytest.mark.slow
async def test_followers_learn_with_the_loop(
    tiny_policy: Path, tmp_path: Path, two_ranks: Path
) -> None:
    """Intake, ledger, checkpoints and publications are the first rank's."""
    expected = await online(tiny_policy, tmp_path / "one")
    found = json.loads((two_ranks / "online.json").read_text())
    # Margins are differences of sums of log-probs: float32 rounds them by 2e-5 on some processors.
    assert found == pytest.approx(dict(expected), rel=1e-4, abs=5e-5)


def test_every_row_has_one_rank() -> None:
    sequences = [sample.sequence for sample in SampleMaker().thumbs(7)]
    for size in (1, 2, 3, 9):
        found = shard_sequences(sequences, size)
        assert len(found) == size
        assert sorted(row for share in found for row in share) == list(range(7))


@pytest.mark.parametrize(
    ("algorithm", "kind", "killed"),
    [
        pytest.param("grpo", "--full", False, marks=pytest.mark.slow),
        pytest.param("kto", "--lora", True, marks=pytest.mark.slow),
        pytest.param("grpo", "--lora", True, marks=pytest.mark.slow),
    ],
)
def test_train_under_torchrun_is_train(
    tiny_policy: Path, tmp_path: Path, algorithm: str, kind: str, killed: bool
) -> None:
    """The command itself, on two ranks, killed on the way or not, and on one."""
    data = write_jsonl(tmp_path / "data.jsonl", rows_for(algorithm))
    tuneloop = str(Path(sys.executable).with_name("tuneloop"))

    def arguments(output: str) -> list[str]:
        options = ["--model", str(tiny_policy), "--data", str(data)]
        options += ["--output", str(tmp_path / output), kind]
        values = ["batch_size=4", "threads=1", "save_steps=1"]
        if algorithm == "grpo":
            options += ["--reward", "support.offline_data:shorter"]
            values += ["max_completion_length=6", "samples_per_prompt=2"]
        return [tuneloop, "train", algorithm, *options, *(f"--set={value}" for value in values)]

    def figures(output: str) -> list[float]:
        lines = (tmp_path / output / "metrics.jsonl").read_text().splitlines()
        # A step on groups without spread has no loss.
        return [json.loads(line).get("loss", 0.0) for line in lines]

    two = ["--no-python", *arguments("two")]
    if killed:
        spawn_and_kill(two, tmp_path / "two" / "checkpoints" / "step-00000001")
    both = spawn(two)
    assert both.returncode == 0, both.stderr[-4000:]
    assert ("going on after step" in both.stderr) == killed
    subprocess.run(arguments("one"), check=True, capture_output=True, env=ENVIRONMENT)
    assert figures("two") == pytest.approx(figures("one"), rel=1e-4, abs=1e-5)
    assert both.stderr.count("samples; loading") + both.stderr.count("prompts; loading") <= 1
    assert (tmp_path / "two" / "model.safetensors").is_file()


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
