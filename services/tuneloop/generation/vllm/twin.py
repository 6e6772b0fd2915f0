"""Loads full weights beside the model in use, so that decoding pauses only for the swap.

Runs in vLLM's worker process, on a CPU. vLLM's own reload takes the weights apart layer by layer
in the live model, which must not run meanwhile. Here the same reload runs on a twin: the same
layers with parameters of their own.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.model_executor.model_loader.reload.inplace import reload_weights
from vllm.model_executor.model_loader.reload.layerwise import LAYERWISE_INFO
from vllm.model_executor.model_loader.reload.types import LayerReloadingInfo

from tuneloop.weights.files import check_weights


@dataclass(frozen=True, slots=True)
class Twin:
    """A layer, its twin, and the twin's attributes before loading."""

    layer: nn.Module
    twin: nn.Module
    before: dict[str, Any]


class TwinWeights:
    """A set of weights that is loaded; memory holds old and new ones until `commit`."""

    def __init__(self, worker: Any, folder: Path, sha256: Mapping[str, str]) -> None:
        self._model_runner = worker.model_runner
        self._folder, self._sha256 = folder, sha256
        self._twins: dict[int, Twin] = {}

    def prepare(self) -> None:
        """Load the weights into the twin. Raises `WeightsRefused` for a wrong hash."""
        check_weights(self._folder, self._sha256)
        model = self._model_runner.get_model()
        twin = twin_of(model, self._twins, {})
        reload_weights(
            self._model_runner.vllm_config,
            twin,
            weights_iterator=None,
            weights_path=str(self._folder),
            is_checkpoint_format=True,
        )
        pack_tied_output(twin)

    def commit(self) -> None:
        """Put the loaded weights into the model, which must not be running."""
        for pair in self._twins.values():
            live, loaded = pair.layer.__dict__, pair.twin.__dict__
            live["_parameters"].update(loaded["_parameters"])
            live["_buffers"].update(loaded["_buffers"])
            # Packed copies of weights are kept in attributes.
            live.update(
                (name, value)
                for name, value in loaded.items()
                if name not in TENSORS and pair.before.get(name) is not value
            )
        self._model_runner.reset_lora_state()
        self._model_runner.reset_encoder_cache()
        self._model_runner.reset_mm_cache()

    def free(self) -> None:
        """Give back the old weights, or the new ones if they are not used."""
        discard(self._twins)


TENSORS = ("_parameters", "_buffers", "_modules")


def twin_of(layer: nn.Module, twins: dict[int, Twin], tensors: dict[int, torch.Tensor]) -> Any:
    """Return the same layers with copies of all parameters and buffers.

    A module or tensor that is shared in the model is shared in the twin; everything else (key-value
    caches, kernels) is shared between the two.
    """
    if id(layer) in twins:
        return twins[id(layer)].twin
    twin = object.__new__(type(layer))
    twin.__dict__ = dict(layer.__dict__)
    twins[id(layer)] = Twin(layer, twin, dict(layer.__dict__))
    for kind in ("_parameters", "_buffers"):
        own = layer.__dict__[kind]
        for tensor in own.values():
            if tensor is not None and id(tensor) not in tensors:
                tensors[id(tensor)] = copy_of(tensor)
        twin.__dict__[kind] = {
            name: None if tensor is None else tensors[id(tensor)] for name, tensor in own.items()
        }
    twin.__dict__["_modules"] = {
        name: None if child is None else twin_of(child, twins, tensors)
        for name, child in layer.__dict__["_modules"].items()
    }
    LAYERWISE_INFO[twin] = reloading_info_of(layer)
    return twin


def reloading_info_of(layer: nn.Module) -> LayerReloadingInfo:
    """Return a copy of vLLM's reload info for the layer: a reload adds loaders to these tensors."""
    known = LAYERWISE_INFO[layer]
    parameters, buffers = (
        {name: copy_of(tensor) for name, tensor in tensors.items()}
        for tensors in known.restore_metadata
    )
    return LayerReloadingInfo((parameters, buffers), known.restore_device)


def discard(twins: dict[int, Twin]) -> None:
    """Free twins: vLLM's reload info refers to the layer, and so keeps its weights in memory."""
    for pair in twins.values():
        notes = LAYERWISE_INFO.pop(pair.twin, None)
        if notes is not None:
            # After a failure it holds half-loaded weights.
            notes.reset()
        pair.twin.__dict__.clear()
    twins.clear()


def copy_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy with its own memory and the same class and attributes (vLLM's loaders)."""
    made = tensor.data.clone()
    made.__class__ = tensor.__class__
    made.__dict__ = copy.copy(tensor.__dict__)
    return made


def pack_tied_output(model: nn.Module) -> None:
    """Pack an output layer that is tied to the input embeddings.

    On a CPU vLLM 0.32 keeps a packed copy of the output layer's weights. No file holds the weights
    of a tied layer, so the reload skips it and the packed copy would stay old.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "cpu_linear") and hasattr(module, "org_vocab_size"):
            module.quant_method.process_weights_after_loading(module)
