"""The files of a version's weights: written for generation, and read back to continue from them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tuneloop.errors import WeightsRefused
from tuneloop.learner.models.world import (
    World,
    full_tensor,
    gather_into,
    local_tensor,
    shard_like,
)
from tuneloop.models.causal_lm import load_causal_lm
from tuneloop.models.reward_model import silence_loading
from tuneloop.weights.shapes import read_config

ADAPTER_WEIGHTS = "adapter_model.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def half_dtype_of(folder: Path) -> torch.dtype:
    """Return the 16-bit dtype that vLLM serves a model in on a GPU: its own, or bfloat16."""
    config = read_config(folder, "config.json")
    own = config.get("dtype") or config.get("torch_dtype")
    return torch.float16 if own == "float16" else torch.bfloat16


def write_whole(folder: Path, model: Any, tokenizer: Path) -> None:
    """Write a `save_pretrained` folder of `model`, with the tokenizer's files from another."""
    folder.mkdir(parents=True, exist_ok=True)
    with silence_loading():
        model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)


def write_full(folder: Path, model: Any, base: Path, *, half: bool, world: World) -> None:
    """Write all weights of a model that grew from `base`; a collective call where it is sharded.

    They are the model's, not their masters: what serves is what the trainer computes with.
    """
    if half or world.size > 1:
        # In main memory: it may be more than a GPU has beside its part.
        dtype, cpu = half_dtype_of(base) if half else torch.float32, torch.device("cpu")
        whole = load_causal_lm(base, dtype, cpu) if world.is_leader else None
        gather_into(whole, model)
        model = whole
    if world.is_leader:
        write_whole(folder, model, tokenizer=base)


def adapter_of(adapted: Any) -> dict[str, Tensor]:
    """Return the tensors of an adapter, whole; a collective call where it is sharded."""
    return {
        name: full_tensor(t).cpu().contiguous() for name, t in _adapter_tensors(adapted).items()
    }


def write_adapter(
    folder: Path, tensors: Mapping[str, Tensor], adapted: Any, base_model: str
) -> None:
    """Write a PEFT folder; the machine's paths stay out of what is published.

    `base_model` is the name of version 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = adapted.peft_config["default"].to_dict()
    config |= {
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "target_modules": sorted(config["target_modules"]),
    }
    document = json.dumps(config, indent=2, sort_keys=True, default=str)
    (folder / "adapter_config.json").write_text(document + "\n")


def read_whole(folder: Path, model: Any) -> None:
    """Put a folder's weights into `model`; raises `WeightsRefused` naming the tensor that differs.

    Nothing has changed then.
    """
    expected = model.state_dict()
    given: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        given |= _tensors_of(file)
    _put(given, expected)


def read_adapter(folder: Path, adapted: Any) -> None:
    """As `read_whole`, of an adapter."""
    _put(_tensors_of(folder / ADAPTER_WEIGHTS), _adapter_tensors(adapted))


def _put(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    _check(given, expected)
    with torch.no_grad():
        for name, tensor in given.items():
            expected[name].copy_(shard_like(tensor, expected[name]))


def _adapter_tensors(adapted: Any) -> dict[str, Tensor]:
    """They share their memory with the model's."""
    tensors: dict[str, Tensor] = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return tensors


def _tensors_of(file: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise WeightsRefused(f"{file.parent.name}: {error}") from error
    return tensors


def _check(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise `WeightsRefused` unless `given` fits; of tied tensors one name is enough."""
    given_places = {local_tensor(expected[name]).data_ptr() for name in given if name in expected}
    given_places -= {0}  # of what this rank has no part of
    for name in sorted(expected.keys() - given.keys()):
        if local_tensor(expected[name]).data_ptr() not in given_places:
            raise WeightsRefused(f"tensor {name} is missing", param=name)
    for name, tensor in given.items():
        if name not in expected:
            raise WeightsRefused(f"tensor {name} is not one of the model's", param=name)
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(expected[name].shape)}"
            raise WeightsRefused(f"tensor {name} has shape {shapes}", param=name)
        if not torch.isfinite(tensor).all():
            raise WeightsRefused(f"tensor {name} is not finite", param=name)
