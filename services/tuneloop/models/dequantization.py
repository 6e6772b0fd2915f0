"""The weights that AWQ's and GPTQ's packed integers stand for.

A weight is (q − z)·s, with a scale s and a zero point z for each group of inputs and each output:
Lin et al. 2023, https://arxiv.org/abs/2306.00978; Frantar et al. 2022,
https://arxiv.org/abs/2210.17323. Both pack integers into int32, lowest bits first.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tuneloop.errors import SettingsError

AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where AWQ's kernels keep each of eight neighbours within an int32."""


def unpacked(packed: Tensor, bits: int, dim: int) -> Tensor:
    """Return int32 of (…) packed along `dim`, which becomes 32 / `bits` times as long."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    dim %= packed.dim()
    words = packed.unsqueeze(dim + 1) >> shifts.view(-1, *[1] * (packed.dim() - dim - 1))
    integers: Tensor = words & (2**bits - 1)
    return integers.flatten(dim, dim + 1)


def awq_weight(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Tensor:
    """Return (out, in) float32 of (in, out/8) int32, (groups, out/8) int32 and (groups, out)."""

    def integers(packed: Tensor) -> Tensor:
        eights = unpacked(packed, 4, 1).view(len(packed), -1, 8)
        return eights[..., list(AWQ_PLACES)].flatten(1)

    groups = torch.arange(len(qweight)) // (len(qweight) // len(scales))
    return _weight(integers(qweight), integers(qzeros), scales, groups)


def gptq_weight(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, groups: Tensor, *, bits: int, zero_offset: int
) -> Tensor:
    """Return (out, in) float32 of (in·bits/32, out) int32, (groups, out·bits/32) and (groups, out).

    `groups`, (in,) int32, is the group of each input. The first version of the format stores zero
    points less 1, the `zero_offset`.
    """
    zeros = (unpacked(qzeros, bits, 1) + zero_offset) & (2**bits - 1)
    return _weight(unpacked(qweight, bits, 0), zeros, scales, groups)


def _weight(integers: Tensor, zeros: Tensor, scales: Tensor, groups: Tensor) -> Tensor:
    groups = groups.long()
    return ((integers - zeros[groups]) * scales.float()[groups]).T.contiguous()


def dequantized_tensors(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return all tensors of a folder in AWQ or GPTQ, in `dtype`, by their names without it.

    Raises `SettingsError` for a layout of these formats that is not known.
    """
    found = json.loads((folder / "config.json").read_bytes())["quantization_config"]
    _check_layout(found)
    stored: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            stored |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors: dict[str, Tensor] = {}
    for name in list(stored):
        layer, _, part = name.rpartition(".")
        if part == "qweight":
            tensors[f"{layer}.weight"] = _layer_weight(stored, layer, found).to(dtype)
        elif f"{layer}.qweight" not in stored or part == "bias":
            tensors[name] = stored[name].to(dtype)
    return tensors


def _check_layout(found: Mapping[str, Any]) -> None:
    bits, method = int(found.get("bits", 4)), found["quant_method"]
    kind = found.get("version" if method == "awq" else "checkpoint_format")
    known = {"awq": (None, "gemm"), "gptq": (None, "gptq", "gptq_v2")}[method]
    if bits not in ((4,) if method == "awq" else (2, 4, 8)) or kind not in known:
        raise SettingsError(
            f"{method} weights of {bits} bits in layout {kind}: only the common layout of 4 bits "
            f"can be trained on ({known[1]}); take another copy of the model",
            param="model",
        )


def _layer_weight(stored: Mapping[str, Tensor], layer: str, found: Mapping[str, Any]) -> Tensor:
    qweight, qzeros, scales = (stored[f"{layer}.{p}"] for p in ("qweight", "qzeros", "scales"))
    if found["quant_method"] == "awq":
        return awq_weight(qweight, qzeros, scales)
    bits = int(found.get("bits", 4))
    inputs = len(qweight) * 32 // bits
    groups = stored.get(f"{layer}.g_idx")
    if groups is None:
        groups = torch.arange(inputs) // (inputs // len(scales))
    offset = 0 if found.get("checkpoint_format") == "gptq_v2" else 1
    return gptq_weight(qweight, qzeros, scales, groups, bits=bits, zero_offset=offset)
