"""Weights in main memory: the bytes that were hashed are those that are loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tuneloop.errors import WeightsRefused
from tuneloop.generation.vllm import host_weights
from tuneloop.generation.vllm.host_weights import HostWeights
from tuneloop.weights.files import sha256_of

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b.weight": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "c.scale": torch.tensor(3.0),
    "d.index": torch.tensor([7], dtype=torch.int64),
    "e.flag": torch.tensor([True, False]),
}


def folder_with(folder: Path) -> dict[str, str]:
    """Write the tensors into two files; return their hashes."""
    save_file({n: t for n, t in TENSORS.items() if n < "c"}, folder / "model-1.safetensors")
    save_file({n: t for n, t in TENSORS.items() if n >= "c"}, folder / "model-2.safetensors")
    return {path.name: sha256_of(path) for path in folder.iterdir()}


def test_every_tensor_of_every_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_weights, "PIECE_BYTES", 7)
    hashes = folder_with(tmp_path)
    for known in (hashes | {"config.json": "of no weights"}, {}):
        weights = HostWeights()
        weights.read(tmp_path, known, locked=False)
        assert weights.tensors.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            assert weights.tensors[name].dtype == tensor.dtype
            assert torch.equal(weights.tensors[name], tensor)
        weights.free()
        assert not weights.tensors


def test_tensors_that_are_not_aligned_are_read_too(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    header += b" " * (-len(header) % 8 + 1)
    data = len(header).to_bytes(8, "little") + header + torch.tensor([2.5]).numpy().tobytes()
    (tmp_path / "model.safetensors").write_bytes(data)
    weights = HostWeights()
    weights.read(tmp_path, {}, locked=False)
    assert weights.tensors["a"].tolist() == [2.5]


@pytest.mark.parametrize("wrong", ["a byte", "a file more", "a file less", "the header"])
def test_files_that_are_not_those_of_the_manifest_are_refused(tmp_path: Path, wrong: str) -> None:
    hashes = folder_with(tmp_path)
    path = tmp_path / "model-2.safetensors"
    data = path.read_bytes()
    match wrong:
        case "a byte":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "a file more":
            (tmp_path / "more.safetensors").write_bytes(data)
        case "a file less":
            path.unlink()
        case "the header":
            path.write_bytes(data[:8] + b"[" + data[9:])
            hashes[path.name] = sha256_of(path)
    weights = HostWeights()
    with pytest.raises(WeightsRefused, match=r"\.safetensors: "):
        weights.read(tmp_path, hashes, locked=False)


class Cudart:
    """Takes the place of CUDA's runtime; answers `status` to every request for locked memory."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.locked: dict[int, int] = {}

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        if self.status == 0:
            self.locked[address] = size
        return self.status

    def cudaHostUnregister(self, address: int) -> int:
        del self.locked[address]
        return 0


@pytest.mark.parametrize("status", [0, 2])
def test_all_memory_is_locked_for_a_gpu_and_unlocked_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    cudart: Any = Cudart(status)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    hashes = folder_with(tmp_path)
    weights = HostWeights()
    weights.read(tmp_path, hashes, locked=True)
    sizes = sorted(path.stat().st_size for path in tmp_path.iterdir())
    assert sorted(cudart.locked.values()) == (sizes if status == 0 else [])
    assert torch.equal(weights.tensors["a.weight"], TENSORS["a.weight"])
    weights.free()
    assert not cudart.locked
