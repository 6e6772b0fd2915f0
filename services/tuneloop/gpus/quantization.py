"""How a model's weights are quantized, by the `quantization_config` of its config.json.

Only the linear layers of the blocks are: embeddings, output layer and norms stay in 16 bits.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneloop.errors import SettingsError
from tuneloop.policies import WeightsKind

PLAIN_BITS = 16.0
BITSANDBYTES = "bitsandbytes"
DEQUANTIZED = ("awq", "compressed-tensors", "fp8", "gptq", "mxfp4")
"""Methods whose weights the learner turns into bfloat16; those of bitsandbytes stay as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How the linear layers are stored."""

    method: str
    """transformers' `quant_method`, such as `fp8`, `awq` or `compressed-tensors`."""
    bits: int
    """Of a weight by itself; 16 where its format is not known."""
    stored_bits: float
    """Of a weight with its part of the scales and zero points."""

    @property
    def stays_packed(self) -> bool:
        """Whether the learner computes with the stored weights, as QLoRA does."""
        return self.method == BITSANDBYTES

    @property
    def packages(self) -> str:
        """What to install that neither vLLM nor transformers brings; empty: nothing."""
        return "bitsandbytes vllm-bnb-plugin" if self.stays_packed else ""

    def missing_packages(self) -> list[str]:
        """Return those of `packages` that are not installed."""
        modules = {name: name.replace("-", "_") for name in self.packages.split()}
        return [n for n, module in modules.items() if importlib.util.find_spec(module) is None]

    @property
    def learner_bits(self) -> float:
        """Bits of a weight in the learner."""
        return self.stored_bits if self.stays_packed else PLAIN_BITS

    def check_kind(self, model: str, kind: WeightsKind) -> None:
        """Raise `SettingsError` for full weights, which would have to be quantized again."""
        if kind is WeightsKind.FULL:
            raise SettingsError(
                f"{model} is quantized ({self.method}, {self.bits} bits), so only adapters can be "
                "trained and served: set the weights to lora, or take the model in bfloat16",
                param="model",
            )

    def check_trainable(self, model: str) -> None:
        """Raise `SettingsError` if the learner cannot compute with weights of this method."""
        known = (BITSANDBYTES, *DEQUANTIZED)
        if self.method not in known:
            raise SettingsError(
                f"{model} is quantized with {self.method}, which adapters cannot be trained on: "
                f"take the model in bfloat16, or quantized with {', '.join(sorted(known))}",
                param="model",
            )


def quantization_of(config: Mapping[str, Any]) -> Quantization | None:
    """Return the quantization that a config.json describes; None if there is none.

    Raises `ValueError` or `TypeError` if the description is none.
    """
    text = config.get("text_config") or {}
    found = config.get("quantization_config") or text.get("quantization_config")
    if not found:
        return None
    method = str(found.get("quant_method") or "unknown")
    bits, scales = _bits(method, found)
    return Quantization(method=method, bits=bits, stored_bits=bits + scales)


def _bits(method: str, found: Mapping[str, Any]) -> tuple[int, float]:
    """Return the bits of a weight, and those of its scale and zero point."""
    match method:
        case "awq" | "gptq":
            bits, group = int(found.get("bits", 4)), int(found.get("group_size", 128))
            # A float16 scale and a zero point of as many bits as a weight.
            return bits, 0.0 if group <= 0 else (16 + bits) / group
        case "compressed-tensors":
            return _compressed_bits(found)
        case "fp8":
            block = found.get("weight_block_size")
            return 8, 32 / (int(block[0]) * int(block[1])) if block else 0.0
        case "bitsandbytes":
            return _bitsandbytes_bits(found)
        case "mxfp4":
            return 4, 8 / 32
    return int(PLAIN_BITS), 0.0


def _bitsandbytes_bits(found: Mapping[str, Any]) -> tuple[int, float]:
    """QLoRA (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314), section 3.

    64 weights share a scale in float32; doubly quantized a scale has 8 bits, and 256 of them share
    one in float32.
    """
    if not found.get("load_in_4bit"):
        return 8, 0.0
    return 4, 8 / 64 + 32 / (64 * 256) if found.get("bnb_4bit_use_double_quant") else 32 / 64


def _compressed_bits(found: Mapping[str, Any]) -> tuple[int, float]:
    """Return the bits of the widest group of layers."""
    groups = [group["weights"] for group in found["config_groups"].values() if group["weights"]]
    widest = max(groups, key=lambda weights: int(weights["num_bits"]))
    bits, size = int(widest["num_bits"]), int(widest.get("group_size") or 0)
    if size <= 0:
        return bits, 0.0
    scale = 8 if widest.get("strategy") == "tensor_group" else 16
    return bits, (scale + (0 if widest.get("symmetric", True) else bits)) / size


NAMED: Mapping[str, Mapping[str, Any]] = {
    "-fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "-awq": {"quant_method": "awq", "bits": 4, "group_size": 128},
    "-gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "-bnb-4bit": {
        "quant_method": BITSANDBYTES,
        "load_in_4bit": True,
        "bnb_4bit_use_double_quant": True,
    },
}
"""What the ends of well-known models' names say."""
