"""Checks that every weight in a version's files is finite: one that is not spoils all answers.

It reads the bits of the files in pieces, without loading a tensor: a floating point number is
infinite or not a number exactly if all bits of its exponent are set.
"""

import json
import struct
from pathlib import Path
from typing import Any

from tuneloop.errors import WeightsRefused
from tuneloop.weights.shapes import read_header

EXPONENT_BITS = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
"""By the dtype's name in safetensors; others (integers, 8-bit floats) are not checked."""
PIECE_BYTES = 1 << 24


def check_finite(folder: Path) -> None:
    """Raise `WeightsRefused` naming the first tensor with a number that is not finite."""
    for path in sorted(folder.glob("*.safetensors")):
        read_header(path)  # raises for a file that is cut
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header: dict[str, Any] = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                start, end = entry["data_offsets"]
                file.seek(8 + length + start)
                if not _is_finite(file, end - start, entry["dtype"]):
                    raise WeightsRefused(f"{name}: not every number is finite", param=name)


def _is_finite(file: Any, size: int, dtype: str) -> bool:
    import numpy as np

    if dtype not in EXPONENT_BITS:
        return True
    kind, mask = EXPONENT_BITS[dtype]
    while size > 0:
        piece = file.read(min(size, PIECE_BYTES))
        size -= len(piece)
        bits = np.frombuffer(piece, dtype=kind)
        if bool(((bits & mask) == mask).any()):
            return False
    return True
