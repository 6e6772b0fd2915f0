"""Loads the language model of a folder, whatever its weights are stored in."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from tuneloop.errors import SettingsError
from tuneloop.gpus.quantization import BITSANDBYTES, Quantization
from tuneloop.models.dequantization import dequantized_tensors
from tuneloop.models.reward_model import silence_loading
from tuneloop.policies import WeightsKind
from tuneloop.weights.shapes import read_quantization


def check_base(folder: Path, kind: WeightsKind, *, ranks: int = 1) -> None:
    """Raise `SettingsError` unless weights of this kind can be trained on the model of a folder."""
    quantization = read_quantization(folder)
    if quantization is None:
        return
    quantization.check_kind(str(folder), kind)
    quantization.check_trainable(str(folder))
    if quantization.stays_packed and ranks > 1:
        raise SettingsError(
            f"{folder} is quantized with {quantization.method}, whose weights are not sharded: "
            f"give the learner one GPU instead of {ranks}, or take the model in FP8 or AWQ",
            param="model",
        )


def load_causal_lm(
    folder: Path, dtype: torch.dtype, device: torch.device, *, keep_packed: bool = True
) -> Any:
    """Load a `save_pretrained` folder in evaluation mode, without anything fetched.

    Quantized weights are dequantized to `dtype`, to the values that generation computes with;
    those of bitsandbytes stay packed, unless `keep_packed` is false. Raises `SettingsError` for a
    quantized folder that cannot be loaded.
    """
    quantization = read_quantization(folder)
    with silence_loading(), warnings.catch_warnings():
        # That loading attributes are overwritten, as they are meant to be.
        warnings.simplefilter("ignore", UserWarning)
        if quantization is None:
            model = _from_folder(folder, dtype=dtype)
        else:
            model = _load_quantized(folder, quantization, dtype, device, keep_packed=keep_packed)
    return model.to(device).eval()


def _from_folder(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, **options
    )


def _load_quantized(
    folder: Path,
    quantization: Quantization,
    dtype: torch.dtype,
    device: torch.device,
    *,
    keep_packed: bool,
) -> Any:
    try:
        if quantization.stays_packed:
            return _load_packed(folder, quantization, dtype, device, keep_packed=keep_packed)
        return _load_dequantized(folder, quantization, dtype)
    except (ImportError, OSError, ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        problem = str(error).strip().partition("\n")[0]
        raise SettingsError(
            f"{folder}: its {quantization.method} weights cannot be loaded: {problem}",
            param="model",
        ) from error


def _load_packed(
    folder: Path,
    quantization: Quantization,
    dtype: torch.dtype,
    device: torch.device,
    *,
    keep_packed: bool,
) -> Any:
    if BITSANDBYTES in quantization.missing_packages():
        raise SettingsError(
            f"{folder} is quantized with bitsandbytes, which is not installed: "
            f"pip install {quantization.packages}",
            param="model",
        )
    model = _from_folder(folder, dtype=dtype, device_map={"": device})
    if not keep_packed:
        return _plain(model.dequantize(dtype).state_dict(), folder, dtype)
    for module in model.modules():
        # As generation computes, whatever was noted when it was quantized.
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = dtype
    return model


def _load_dequantized(folder: Path, quantization: Quantization, dtype: torch.dtype) -> Any:
    if quantization.method in ("awq", "gptq"):
        tensors = dequantized_tensors(folder, dtype)
    else:
        wanted = _dequantizing(quantization)
        tensors = _from_folder(folder, dtype=dtype, quantization_config=wanted).state_dict()
    return _plain(tensors, folder, dtype)


def _plain(tensors: dict[str, Tensor], folder: Path, dtype: torch.dtype) -> Any:
    """Return a model of these weights that knows nothing of their quantization.

    A dequantized model of transformers still does: it rounds activations, through which gradients
    do not go (compressed-tensors), and quantizes again what it saves (FP8).
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    del config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    known = plain.state_dict()
    given = {name: tensor for name, tensor in tensors.items() if name in known}
    return type(plain).from_pretrained(None, config=config, state_dict=given, dtype=dtype)


def _dequantizing(quantization: Quantization) -> Any:
    from transformers import CompressedTensorsConfig, FineGrainedFP8Config, Mxfp4Config

    known: dict[str, type] = {
        "compressed-tensors": CompressedTensorsConfig,
        "fp8": FineGrainedFP8Config,
        "mxfp4": Mxfp4Config,
    }
    return known[quantization.method](dequantize=True)
