"""Weights prepared beside vLLM's model, and the twin that full weights are loaded into."""

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tuneloop.errors import WeightsRefused

pytestmark = pytest.mark.vllm


def test_a_twin_is_tied_as_the_model_is_and_leaves_nothing_behind() -> None:
    from vllm.model_executor.model_loader.reload import layerwise

    from tuneloop.generation.vllm.twin import Twin, discard, twin_of

    model = nn.ModuleDict({"embed": nn.Embedding(8, 4), "head": nn.Linear(4, 8, bias=False)})
    model["again"] = model["embed"]
    model["head"].weight = model["embed"].weight
    model["head"].weight.weight_loader = model["head"].forward
    layerwise.record_metadata_for_reloading(model)
    notes = len(layerwise.LAYERWISE_INFO)
    twins: dict[int, Twin] = {}
    twin = twin_of(model, twins, {})
    assert twin["head"].weight is twin["embed"].weight
    assert twin["again"] is twin["embed"]
    assert twin["head"].weight is not model["head"].weight
    assert torch.equal(twin["head"].weight, model["head"].weight)

    weights = weakref.ref(twin["head"].weight)
    # As a reload does; a loader bound to the layer closes a circle through vLLM's notes.
    layerwise.initialize_layerwise_reload(twin)
    assert model["head"].weight.shape == (8, 4)
    assert not model["head"].weight.is_meta
    gc.disable()
    try:
        discard(twins)
        del twin
        assert weights() is None
    finally:
        gc.enable()
    assert len(layerwise.LAYERWISE_INFO) == notes


class Weights:
    """Counts what is done to it; `prepare` waits for the gate."""

    def __init__(self, error: Exception | None = None) -> None:
        self.gate = threading.Event()
        self.error = error
        self.done: list[str] = []

    def prepare(self) -> None:
        assert self.gate.wait(10)
        self.done.append("prepare")
        if self.error is not None:
            raise self.error

    def commit(self) -> None:
        self.done.append("commit")

    def free(self) -> None:
        self.done.append("free")


def test_memory_of_staged_weights_is_given_back_however_it_ends() -> None:
    from tuneloop.generation.vllm.staging import Staging

    used = Weights()
    staging = Staging(used)
    assert not staging.ready()
    used.gate.set()
    until_now(staging.ready)
    staging.commit()
    assert used.done == ["prepare", "commit", "free"]

    refused = Weights(WeightsRefused("wrong SHA-256"))
    staging = Staging(refused)
    refused.gate.set()
    with pytest.raises(WeightsRefused):
        until_now(staging.ready)
    staging.discard()
    until_now(lambda: "free" in refused.done)
    assert "commit" not in refused.done

    given_up = Weights()
    staging = Staging(given_up)
    staging.discard()
    assert given_up.done == []
    given_up.gate.set()
    until_now(lambda: given_up.done == ["prepare", "free"])


def until_now(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_weights_that_do_not_fit_into_main_memory_are_read_in_the_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuneloop.generation.vllm import staging
    from tuneloop.weights.files import sha256_of

    save_file({"a": torch.ones(4)}, tmp_path / "model.safetensors")
    size = (tmp_path / "model.safetensors").stat().st_size
    hashes = {"model.safetensors": sha256_of(tmp_path / "model.safetensors")}
    reloads: list[dict[str, Any]] = []
    worker = SimpleNamespace(
        device=torch.device("cpu"),
        vllm_config=SimpleNamespace(parallel_config=SimpleNamespace(world_size=2)),
        model_runner=SimpleNamespace(get_model=lambda: nn.Linear(1, 1)),
        reload_weights=lambda **given: reloads.append(
            {name: dict(v) if name == "weights_iterator" else v for name, v in given.items()}
        ),
    )
    for available in (2 * size, 2 * size - 1):
        monkeypatch.setattr(staging, "available_memory", lambda available=available: available)
        weights = staging.LockedWeights(worker, tmp_path, hashes)
        weights.prepare()
        weights.commit()
        weights.free()
    staged, from_disk = reloads
    assert torch.equal(staged["weights_iterator"]["a"], torch.ones(4))
    assert from_disk == {"weights_path": str(tmp_path)}
    with pytest.raises(WeightsRefused, match="SHA-256"):
        staging.LockedWeights(worker, tmp_path, {"model.safetensors": "0" * 64}).prepare()
