"""A version's weights in main memory, verified as they are read.

What was hashed is what is loaded: no file is opened again. With CUDA the memory is locked, so that
a GPU copies from it at the full speed of the bus. The format is in `tuneloop.weights.shapes`.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tuneloop.errors import WeightsRefused
from tuneloop.weights.files import check_hash, list_weights
from tuneloop.weights.shapes import Entry, parse_entries

logger = logging.getLogger("tuneloop.generation")
PIECE_BYTES = 1 << 24
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By the names of safetensors."""


class HostWeights:
    """The tensors of a folder's safetensors files, until `free`."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        """By name; on the CPU, in the dtypes and shapes of the files."""
        self._locked: list[torch.Tensor] = []

    def read(self, folder: Path, sha256: Mapping[str, str], *, locked: bool) -> None:
        """Read every file. `sha256` has their hashes by name; empty: they are not checked.

        Raises `WeightsRefused` for a file that is not what it should be.
        """
        paths = list_weights(folder, sha256)
        # All of them before any is locked, which takes long.
        buffers = [read_file(path, sha256) for path in paths]
        for path, buffer in zip(paths, buffers, strict=True):
            self.tensors |= tensors_of(buffer, path.name)
        for buffer in buffers if locked else ():
            # Not by torch's allocator: it takes the next power of two, and keeps it.
            error = _cudart().cudaHostRegister(buffer.data_ptr(), buffer.numel(), 0)
            if int(error) != 0:
                logger.warning("main memory for weights cannot be locked, swaps are slower")
                return
            self._locked.append(buffer)

    def free(self) -> None:
        """Give the memory back; nothing may be copying from it."""
        for buffer in self._locked:
            _cudart().cudaHostUnregister(buffer.data_ptr())
        self._locked.clear()
        self.tensors.clear()


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def read_file(path: Path, sha256: Mapping[str, str]) -> torch.Tensor:
    """Return the bytes of a file, uint8. Raises `WeightsRefused` if their hash is another."""
    buffer = torch.empty(path.stat().st_size, dtype=torch.uint8)
    view, digest = buffer.numpy().data, hashlib.sha256()
    with path.open("rb") as file:
        for start in range(0, len(view), PIECE_BYTES):
            piece = view[start : start + PIECE_BYTES]
            if file.readinto(piece) != len(piece):
                raise WeightsRefused(f"{path.name}: cut short", param=path.name)
            digest.update(piece)
    check_hash(path, sha256, digest.hexdigest())
    return buffer


def tensors_of(buffer: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a file's bytes, in the same memory. Raises `WeightsRefused`."""
    view = buffer.numpy().data
    entries = parse_entries(lambda start, end: view[start:end].tobytes(), len(view), name)
    try:
        return {key: tensor_of(buffer, entry) for key, entry in entries.items()}
    except (ValueError, KeyError, RuntimeError) as error:
        raise WeightsRefused(f"{name}: malformed: {error}", param=name) from error


def tensor_of(buffer: torch.Tensor, entry: Entry) -> torch.Tensor:
    """Return the tensor that an entry of the header describes."""
    start, end = entry.place
    dtype, part = DTYPES[entry.dtype], buffer[start:end]
    if part.storage_offset() % dtype.itemsize:
        part = part.clone()
    return part.view(dtype).reshape(entry.shape)
