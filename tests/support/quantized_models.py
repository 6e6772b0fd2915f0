"""Tiny models in the formats of quantized weights, packed here and not by what unpacks them."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbours each four bits of an int32 hold."""
Packed = dict[str, Tensor]


def pack(integers: Tensor, dim: int, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Return int32 of eight integers of four bits each, along `dim`, lowest bits first."""
    eights = integers.unflatten(dim, (-1, 8))
    words = torch.zeros_like(eights.select(dim + 1, 0))
    for place, which in enumerate(order):
        words |= eights.select(dim + 1, which) << (4 * place)
    return words


def round_groups(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (in, out) integers of 0 to 15, and (groups, out) zero points and scales."""
    groups = weight.T.unflatten(0, (-1, GROUP))
    low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    scales = ((high - low) / 15).half().float()
    zeros = (-low / scales).round()
    integers = (groups / scales.unsqueeze(1) + zeros.unsqueeze(1)).round().clamp(0, 15)
    return integers.flatten(0, 1).int(), zeros.int(), scales


def to_awq(layer: str, weight: Tensor) -> Packed:
    integers, zeros, scales = round_groups(weight)
    return {
        f"{layer}.qweight": pack(integers, 1, AWQ_ORDER),
        f"{layer}.qzeros": pack(zeros, 1, AWQ_ORDER),
        f"{layer}.scales": scales.half(),
    }


def to_gptq(layer: str, weight: Tensor) -> Packed:
    integers, zeros, scales = round_groups(weight)
    return {
        f"{layer}.qweight": pack(integers, 0),
        f"{layer}.qzeros": pack((zeros - 1) & 15, 1),
        f"{layer}.scales": scales.half(),
        f"{layer}.g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
    }


def to_fp8(layer: str, weight: Tensor) -> Packed:
    blocks = weight.unflatten(1, (-1, GROUP)).unflatten(0, (-1, GROUP))
    scales = blocks.abs().amax((1, 3), keepdim=True) / 448
    rounded = (blocks / scales).flatten(2, 3).flatten(0, 1).to(torch.float8_e4m3fn)
    return {f"{layer}.weight": rounded, f"{layer}.weight_scale_inv": scales[:, 0, :, 0].clone()}


def to_fp8_rows(layer: str, weight: Tensor) -> Packed:
    scales = weight.abs().amax(1, keepdim=True) / 448
    rounded = (weight / scales).to(torch.float8_e4m3fn)
    return {f"{layer}.weight": rounded, f"{layer}.weight_scale": scales}


def to_packed_int4(layer: str, weight: Tensor) -> Packed:
    groups = weight.unflatten(1, (-1, GROUP))
    scales = groups.abs().amax(2, keepdim=True) / 7.5
    integers = (groups / scales).round().clamp(-8, 7).flatten(1, 2).int() + 8
    return {
        f"{layer}.weight_packed": pack(integers, 1),
        f"{layer}.weight_scale": scales[:, :, 0].clone(),
        f"{layer}.weight_shape": torch.tensor(weight.shape),
    }


def compressed(
    name: str, weights: Mapping[str, Any], activations: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the `quantization_config` of compressed-tensors."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": name,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "dynamic": False}
FORMATS: Mapping[str, tuple[Callable[[str, Tensor], Packed], Mapping[str, Any]]] = {
    "awq": (to_awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}),
    "gptq": (
        to_gptq,
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": "gptq"},
    ),
    "fp8": (
        to_fp8,
        {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [GROUP, GROUP],
        },
    ),
    "compressed-fp8": (
        to_fp8_rows,
        compressed(
            "float-quantized",
            FP8 | {"strategy": "channel", "dynamic": False},
            FP8 | {"strategy": "token", "dynamic": True},
        ),
    ),
    "compressed-int4": (
        to_packed_int4,
        compressed("pack-quantized", INT4 | {"strategy": "group", "group_size": GROUP}, None),
    ),
}


def quantize(plain: Path, folder: Path, name: str) -> Path:
    """Write the model of `plain` with its linear layers in a format of `FORMATS`."""
    to_packed, description = FORMATS[name]
    shutil.copytree(plain, folder)
    tensors: Packed = {}
    for tensor_name, tensor in load_file(plain / "model.safetensors").items():
        layer, _, part = tensor_name.rpartition(".")
        if layer.endswith("_proj") and part == "weight":
            tensors |= to_packed(layer, tensor)
        else:
            tensors[tensor_name] = tensor
    whole = {tensor_name: tensor.contiguous() for tensor_name, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    document = config | {"quantization_config": description}
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def quantize_bitsandbytes(plain: Path, folder: Path) -> Path:
    """Write the model of `plain` in bitsandbytes' 4 bits (NF4, doubly quantized)."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    shutil.copytree(plain, folder)
    wanted = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=wanted, dtype=torch.float32, device_map={"": "cpu"}
    ).save_pretrained(folder)
    return folder
