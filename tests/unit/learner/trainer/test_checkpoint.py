"""Checkpoints: resuming is bit-exact; what is cut, changed or foreign is refused."""

import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.policy_samples import SampleMaker
from torch import nn

from tuneloop.errors import CorruptData
from tuneloop.learner.models.world import ALONE
from tuneloop.learner.samples import LabelledText
from tuneloop.learner.trainer import checkpoint, checkpoint_shards
from tuneloop.learner.trainer.base import TrainerState
from tuneloop.learner.trainer.checkpoint_shards import Saved
from tuneloop.learner.trainer.optimizer import Optimizer
from tuneloop.learner.trainer.policy import PolicyTrainer
from tuneloop.learner.trainer.reward_model import RewardTrainer
from tuneloop.learner.trainer.settings import (
    OptimizerSettings,
    RewardTrainerSettings,
    TrainerSettings,
)
from tuneloop.policies import WeightsKind


def make_samples(seed: int) -> dict[str, Any]:
    maker = SampleMaker(seed)
    return {"kto": maker.thumbs(4), "dpo": maker.pairs(2), "ppo": maker.scored(4)}


def make_texts(seed: int) -> list[LabelledText]:
    return [
        LabelledText(
            sample_id=str(i), prompt="the river", completion=f"{seed} {i}", desirable=i > 1
        )
        for i in range(4)
    ]


def same(a: TrainerState, b: TrainerState) -> bool:
    pairs = [(a.model, b.model), (a.optimizer, b.optimizer)]
    equal = all(
        x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x) for x, y in pairs
    )
    return equal and a.scheduler == b.scheduler


@pytest.mark.parametrize("kind", WeightsKind)
def test_six_steps_are_three_a_checkpoint_and_three_in_a_new_trainer(
    tiny_policy: Path, tmp_path: Path, kind: WeightsKind
) -> None:
    options = TrainerSettings(
        kind=kind, learning_rate=1e-3, weight_decay=0.01, warmup_steps=5, ppo_epochs=2, threads=1
    )
    straight = PolicyTrainer(tiny_policy, options)
    for seed in range(6):
        straight.step(make_samples(seed))
    first = PolicyTrainer(tiny_policy, options)
    for seed in range(3):
        first.step(make_samples(seed))
    folder = tmp_path / "step-00000003"
    checkpoint.save(folder, {"policy": first}, {"step": 3, "epoch": 0})
    loaded = checkpoint.load(folder)
    assert loaded.position == {"step": 3, "epoch": 0}
    # Another seed: everything that differs at the start must come from the checkpoint.
    second = PolicyTrainer(tiny_policy, TrainerSettings(**{**as_options(options), "seed": 99}))
    loaded.put_back("policy", second)
    for seed in range(3, 6):
        result = second.step(make_samples(seed))
    assert same(straight.state(), second.state())
    assert "value_head.weight" in straight.state().model
    assert result == straight_last(tiny_policy, options)


def as_options(options: TrainerSettings) -> dict[str, Any]:
    return {name: getattr(options, name) for name in options.__dataclass_fields__}


def straight_last(folder: Path, options: TrainerSettings) -> object:
    trainer = PolicyTrainer(folder, options)
    return [trainer.step(make_samples(seed)) for seed in range(6)][-1]


def test_the_reward_model_resumes_bit_for_bit(tiny_reward_model: Path, tmp_path: Path) -> None:
    options = RewardTrainerSettings(threads=1, learning_rate=1e-3)
    straight, first, second = (RewardTrainer(tiny_reward_model, options) for _ in range(3))
    for seed in range(4):
        straight.step({"reward_model": make_texts(seed)})
    for seed in range(2):
        first.step({"reward_model": make_texts(seed)})
    checkpoint.save(tmp_path / "c", {"reward_model": first})
    checkpoint.load(tmp_path / "c").put_back("reward_model", second)
    for seed in range(2, 4):
        second.step({"reward_model": make_texts(seed)})
    assert same(straight.state(), second.state())


def draw() -> list[float]:
    return [random.random(), random.gauss(0, 1), float(np.random.randn()), float(torch.rand(()))]


def test_random_generators_continue_where_they_were(tmp_path: Path) -> None:
    draw()
    checkpoint.save(tmp_path / "c", {})
    expected = draw()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert draw() != expected
    checkpoint.load(tmp_path / "c").random.restore()
    assert draw() == expected


class Small:
    """A matrix and a tensor of nothing, without moments yet."""

    def __init__(self) -> None:
        tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0)}
        named = {name: nn.Parameter(tensor) for name, tensor in tensors.items()}
        self.optimization = Optimizer([(named, 0.1)], OptimizerSettings(learning_rate=0.1))

    def stage_state(self) -> Callable[[Path], Saved]:
        return partial(checkpoint_shards.save, state=self.optimization.state(), world=ALONE)

    def read_state(self, folder: Path, saved: Saved) -> None:
        state = checkpoint_shards.load(folder, saved, self.optimization.blank, ALONE)
        self.optimization.load_state(state)


def read(folder: Path) -> None:
    checkpoint.load(folder).put_back("policy", Small())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "step-00000001"
    checkpoint.save(folder, {"policy": Small()})
    read(folder)
    return folder


TENSORS = "policy/shard-00001-model-00001-of-00001.safetensors"


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


ENTRY = {"bytes": 1, "sha256": ""}
SPOIL: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda c: (c / "checkpoint.json").unlink(), "no readable checkpoint.json"),
    "empty index": (lambda c: (c / "checkpoint.json").write_text(""), "does not parse"),
    "a list": (lambda c: (c / "checkpoint.json").write_text("[]"), "does not parse"),
    "other format": (
        lambda c: rewrite(c / "checkpoint.json", lambda d: d.update(format="torch")),
        "not tuneloop-checkpoint version 2",
    ),
    "other version": (
        lambda c: rewrite(c / "checkpoint.json", lambda d: d.update(format_version=1)),
        "not tuneloop-checkpoint version 2",
    ),
    "outside file": (
        lambda c: rewrite(c / "checkpoint.json", lambda d: d["files"].update({"../x.json": ENTRY})),
        "names a foreign file",
    ),
    "pickle": (
        lambda c: rewrite(c / "checkpoint.json", lambda d: d["files"].update({"x.pt": ENTRY})),
        "names a foreign file",
    ),
    "file gone": (lambda c: (c / TENSORS).unlink(), "policy: .*No such file.*shard-00001"),
    "folder gone": (lambda c: shutil.rmtree(c / "policy"), "policy: .*No such file.*shard-00001"),
    "file cut": (
        lambda c: (c / TENSORS).write_bytes(b"short"),
        "policy: shard-00001-model-00001-of-00001.safetensors has 5 bytes",
    ),
    "bit flipped": (
        lambda c: flip(c / TENSORS),
        "policy: shard-00001-model-00001-of-00001.safetensors has another SHA-256",
    ),
    "file too many": (
        lambda c: shutil.copyfile(c / TENSORS, c / "policy" / "stranger.safetensors"),
        "policy: stranger.safetensors is a foreign file",
    ),
    "trainer's files not listed": (
        lambda c: rewrite(c / "checkpoint.json", lambda d: d["files"].pop(TENSORS)),
        "policy: shard-00001-model-00001-of-00001.safetensors is a foreign file",
    ),
    "random state cut": (lambda c: (c / "random.safetensors").write_bytes(b""), "has 0 bytes"),
    "entry is no entry": (
        lambda c: rewrite(c / "checkpoint.json", lambda d: d["files"].update({"state.json": 3})),
        "does not parse",
    ),
    "state not listed": (
        lambda c: rewrite(c / "checkpoint.json", lambda d: d["files"].pop("state.json")),
        "KeyError",
    ),
}


@pytest.mark.parametrize("how", SPOIL)
def test_a_spoiled_checkpoint_is_refused(saved: Path, tmp_path: Path, how: str) -> None:
    folder = tmp_path / "step-00000001"
    shutil.copytree(saved, folder)
    spoil, message = SPOIL[how]
    spoil(folder)
    with pytest.raises(CorruptData, match=message):
        read(folder)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_no_cut_and_no_flipped_byte_goes_unnoticed(
    saved: Path, tmp_path: Path, data: st.DataObject
) -> None:
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "checkpoint.json"]
    path = data.draw(st.sampled_from(files))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(content[:place])
    else:
        content[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
    with pytest.raises(CorruptData):
        read(folder)


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptData, match="no readable"):
        checkpoint.load(tmp_path / "step-00000009")


def test_a_checkpoint_of_other_settings_is_refused_and_changes_nothing(tiny_policy: Path) -> None:
    small = PolicyTrainer(tiny_policy, TrainerSettings(lora_rank=4, threads=1))
    large = PolicyTrainer(tiny_policy, TrainerSettings(lora_rank=8, threads=1))
    full = PolicyTrainer(tiny_policy, TrainerSettings(kind=WeightsKind.FULL, threads=1))
    before = large.state()
    with pytest.raises(CorruptData, match="has shape"):
        large.load_state(small.state())
    with pytest.raises(CorruptData, match="not in both"):
        large.load_state(full.state())
    state = large.state()
    with pytest.raises(CorruptData, match="optimizer_steps"):
        large.load_state(TrainerState(model=state.model, optimizer={}, scheduler={}))
    stranger = {"x.exp_avg": torch.zeros(1)}
    with pytest.raises(CorruptData, match="another optimizer"):
        large.load_state(
            TrainerState(model=state.model, optimizer=stranger, scheduler=state.scheduler)
        )
    assert same(before, large.state())


def test_latest_is_the_newest_whole_one_and_prune_keeps_the_newest(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "nowhere") is None
    for step in (1, 2, 10):
        checkpoint.save(tmp_path / f"step-{step:08d}", {})
    (tmp_path / "step-00000011").mkdir()  # no index: never finished
    (tmp_path / ".unfinished-step-00000012").mkdir()
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert newest.name == "step-00000010"
    checkpoint.prune(tmp_path, keep=2)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["step-00000002", "step-00000010", "step-00000011"]


def test_a_save_that_is_cut_short_leaves_the_older_checkpoint_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "step-00000001"
    checkpoint.save(folder, {}, {"step": 1})

    def crash(path: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "digest_of", crash)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(folder, {}, {"step": 2})
    monkeypatch.undo()
    assert checkpoint.load(folder).position == {"step": 1}
    assert checkpoint.latest(tmp_path) == folder
