"""GPUs and their memory, as the processes of `tuneloop up` get them."""

import json
import os
from pathlib import Path

import pytest

from tuneloop.errors import SettingsError
from tuneloop.gpus.devices import DriverError, Gpu
from tuneloop.policies import WeightsKind
from tuneloop.supervisor import gpus
from tuneloop.supervisor.data_dir import open_data_dir
from tuneloop.supervisor.plan import make_plan
from tuneloop.supervisor.settings import SupervisorSettings

QWEN3_8B = {
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 36,
    "hidden_size": 4096,
    "head_dim": 128,
    "intermediate_size": 12288,
    "vocab_size": 151936,
    "model_type": "qwen3",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_8B))
    return tmp_path


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, mebibytes: int = 81_559) -> None:
    found = [Gpu(name="H100", driver="580.65", memory=mebibytes << 20, used=0)] * count
    monkeypatch.setattr(gpus, "find_gpus", lambda: found)


def test_one_gpu_is_divided(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 1)
    shares = gpus.share_gpus(model, WeightsKind.LORA, {})
    assert shares is not None
    assert shares.plan.is_shared
    share = float(shares.settings["generation"]["GPU_MEMORY_UTILIZATION"])
    cache = float(shares.settings["generation"]["KV_CACHE_GIB"])
    own = float(shares.settings["learner"]["MEMORY_GIB"])
    total = 81_559 / 1024
    # All of it, but for 2 GiB that neither takes.
    assert share * total + own == pytest.approx(total - 2, abs=0.1)
    assert 8 < cache < share * total
    assert {one["CUDA_VISIBLE_DEVICES"] for one in shares.variables.values()} == {"0"}


def test_of_two_gpus_each_has_one(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 4)
    shares = gpus.share_gpus(
        model,
        WeightsKind.LORA,
        {"CUDA_VISIBLE_DEVICES": "3,1, 2", "TUNELOOP_GENERATION_TENSOR_PARALLEL": "2"},
    )
    assert shares is not None
    assert shares.settings == {"generation": {}, "learner": {}}
    named = {name: one["CUDA_VISIBLE_DEVICES"] for name, one in shares.variables.items()}
    assert named == {"generation": "3,1", "learner": "2", "reward": "2"}


def test_what_does_not_fit_is_refused_with_its_numbers(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, 1)
    with pytest.raises(SettingsError, match=r"has 79\.6 GiB, too little for generation weights 15"):
        gpus.share_gpus(model, WeightsKind.FULL, {})
    divided = {"TUNELOOP_GENERATION_KV_CACHE_GIB": "4", "TUNELOOP_LEARNER_MEMORY_GIB": "40"}
    assert gpus.share_gpus(model, WeightsKind.FULL, divided) is not None
    assert gpus.share_gpus(model, WeightsKind.FULL, {"TUNELOOP_LEARNER_DEVICE": "cpu"}) is None


@pytest.mark.parametrize("wanted", ["two", "0", "-1", ""])
def test_a_number_of_gpus_that_is_none_is_refused(
    wanted: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, 2)
    with pytest.raises(SettingsError, match=f"TENSOR_PARALLEL='{wanted}': must be a number"):
        gpus.share_gpus(model, WeightsKind.LORA, {"TUNELOOP_GENERATION_TENSOR_PARALLEL": wanted})


def test_without_gpus_there_is_nothing_to_divide(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, 0)
    assert gpus.share_gpus(model, WeightsKind.LORA, {}) is None
    with_gpus(monkeypatch, 2)
    assert gpus.share_gpus(model, WeightsKind.LORA, {"CUDA_VISIBLE_DEVICES": ""}) is None

    def broken() -> list[Gpu]:
        raise DriverError("no driver")

    monkeypatch.setattr(gpus, "find_gpus", broken)
    with pytest.raises(SettingsError, match="nvidia-smi fails: no driver"):
        gpus.share_gpus(model, WeightsKind.LORA, {})


@pytest.mark.parametrize(
    ("count", "learner_stage", "ranks"), [(1, 2, None), (2, None, None), (4, None, "3")]
)
def test_the_processes_get_what_the_plan_says(
    count: int,
    learner_stage: int | None,
    ranks: str | None,
    model: Path,
    tmp_path: Path,
    unused_tcp_port: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_gpus(monkeypatch, count)
    plan = make_plan(
        SupervisorSettings(data_dir=tmp_path, port=unused_tcp_port),
        open_data_dir(tmp_path / "data"),
        model=model,
        reward_model=tmp_path / "reward",
        environment={"PATH": os.environ["PATH"], "CUDA_VISIBLE_DEVICES": "0,1,2,3"},
    )
    specs = {spec.name: spec for spec in plan.specs}
    learner, generation = specs["learner"], specs["generation"]
    shown = [one.environment["CUDA_VISIBLE_DEVICES"] for one in (generation, learner)]
    assert shown == ["0", {1: "0", 2: "1", 4: "1,2,3"}[count]]
    assert ("TUNELOOP_LEARNER_MEMORY_GIB" in learner.environment) == (count == 1)
    assert ("TUNELOOP_GENERATION_KV_CACHE_GIB" in generation.environment) == (count == 1)
    if learner_stage is not None:
        # Generation has taken its memory before the learner starts.
        assert learner.stage == learner_stage > generation.stage
    command = list(learner.command)
    assert ("torch.distributed.run" in command) == (ranks is not None)
    if ranks is not None:
        assert command[command.index("--nproc-per-node") + 1] == ranks
