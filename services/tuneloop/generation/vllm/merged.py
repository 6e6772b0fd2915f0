"""A LoRA adapter added to the weights, for batches in which everybody uses it.

On a CPU an adapter's small products take a good part of decoding, and most batches use one version
only. For those the linear layers compute with the sums of weights and adapter, packed as vLLM packs
weights; in all other batches with the weights, and `worker.GroupedLora` adds what each row needs.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tuneloop.host import available_memory, lower_thread_priority

logger = logging.getLogger("tuneloop.generation")

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""What vLLM has a linear layer compute with on a CPU: of input, weight and bias."""


class MergedLayer(NamedTuple):
    """A linear layer of the model, and what it computes with."""

    layer: Any
    plain: Linear
    merged: Linear
    sample: tuple[Tensor, Tensor]
    """An input, and its product with the weight in the model's files."""


class NotMerged(Exception):
    """The reason why an adapter is computed by itself."""


REST = 2.0
"""Of the merging thread after each layer, in times what it took: users come first."""
KEPT = 2
"""Adapters that stay merged: the newest, and the one that it takes over from."""
one_at_a_time = threading.Lock()


def start_merging(
    folder: Path, manager: Any, slot: int, adapter: Any, wrappers: Iterable[Any]
) -> threading.Thread:
    """Merge an adapter that is used already, in a thread of low priority; see `merge_adapter`.

    In the end `wrappers`, each a `worker.GroupedLora`, have it.
    """
    number = adapter.id

    def run() -> None:
        lower_thread_priority()
        with one_at_a_time, torch.inference_mode():
            if manager.lora_index_to_id[slot] != number:
                return
            layers = merge_adapter(folder, manager, slot, adapter)
            # Of a slot that was given to another adapter meanwhile they are none's.
            if layers and manager.lora_index_to_id[slot] == number:
                for wrapper in wrappers:
                    others = {n: m for n, m in wrapper.merged.items() if n != number}
                    kept = list(others)[-(KEPT - 1) :]
                    wrapper.merged = {**{n: others[n] for n in kept}, number: layers}

    thread = threading.Thread(target=run, name="merge adapter", daemon=True)
    thread.start()
    return thread


def merge_adapter(folder: Path, manager: Any, slot: int, adapter: Any) -> list[MergedLayer]:
    """Return the layers that vLLM's LoRA manager has put an adapter beside, with their sums.

    `folder` has the base model. Returns none where memory is short, or where a layer is none that
    this knows. Nothing of vLLM's is computed here, beside decoding: see `are_as_read`.
    """
    modules = {
        name: module
        for name, module in manager.modules.items()
        if manager._get_lora_layer_weights(adapter, name)
    }
    try:
        check_memory(modules.values())
        with ExitStack() as files:
            tensors = {
                name: file
                for path in sorted(folder.glob("*.safetensors"))
                for file in (files.enter_context(safe_open(path, "pt")),)
                for name in file.keys()  # noqa: SIM118 - it is no mapping
            }
            layers = []
            for name, module in modules.items():
                started = time.perf_counter()
                layers.append(merged_layer(module, read_weight(tensors, manager, name), slot))
                time.sleep(REST * (time.perf_counter() - started))
            return layers
    except (NotMerged, OSError, RuntimeError, SafetensorError) as reason:
        logger.info("the adapter is not added to the weights: %s", reason)
        return []


def check_memory(modules: Any) -> None:
    """Raise `NotMerged` unless there is room for the sums, packed and not."""
    size = sum(
        4 * module.lora_a_stacked[0].shape[-1] * sum(module.output_slices)
        for module in modules
        if is_linear(module)
    )
    if 2 * size > available_memory():
        raise NotMerged(f"no memory for twice {size} bytes")


def read_weight(tensors: dict[str, Any], manager: Any, name: str) -> Tensor:
    """Return the weight of a layer, [out, in] float32, from the model's files.

    vLLM joins layers that read the same; their weights are rows of one.
    """
    parts = [f"{part}.weight" for part in manager.packed_modules.get(name, [name])]
    if missing := [part for part in parts if part not in tensors]:
        raise NotMerged(f"the model's files have no {missing[0]}")
    return torch.cat([tensors[part].get_tensor(part).float() for part in parts])


def merged_layer(module: Any, weight: Tensor, slot: int) -> MergedLayer:
    """Return the layer that vLLM's `module` has an adapter for in `slot`; `weight` is changed."""
    if not is_linear(module):
        raise NotMerged(f"{type(module).__name__} is no linear layer")
    layer = module.base_layer
    if not hasattr(layer, "plain_linear"):
        # Before anything is merged, so this is vLLM's own.
        layer.plain_linear = layer.cpu_linear
    x = torch.randn(2, weight.shape[-1], generator=torch.Generator().manual_seed(0))
    sample = x, x @ weight.t()
    parts = torch.split(weight, list(module.output_slices))
    for rows, half_a, half_b in zip(
        parts, module.lora_a_stacked, module.lora_b_stacked, strict=True
    ):
        rows.addmm_(half_b[slot, 0].float(), half_a[slot, 0].float())
    return MergedLayer(layer=layer, plain=layer.plain_linear, merged=packed(weight), sample=sample)


def is_linear(module: Any) -> bool:
    """Return whether it is an adapted linear layer that vLLM computes on a CPU."""
    return hasattr(module, "output_slices") and hasattr(module.base_layer, "cpu_linear")


def are_as_read(layers: Iterable[MergedLayer]) -> bool:
    """Return whether the layers multiply with the weights that were read; each is asked once.

    Only where decoding is done: vLLM's products on a CPU share memory and must not run in two
    threads.
    """
    for one in layers:
        if getattr(one.layer, "is_as_read", False):
            continue
        x, expected = one.sample
        try:
            given = one.plain(x, one.layer.weight, None)
        except RuntimeError as error:
            logger.info("the adapter is not added to the weights: %s", error)
            return False
        if given.shape != expected.shape or not torch.allclose(given, expected, 1e-3, 1e-3):
            logger.info("the adapter is not added to the weights: a layer computes something else")
            return False
        one.layer.is_as_read = True
    return True


def packed(weight: Tensor) -> Linear:
    """Return the product with a weight as vLLM computes it for a layer of this shape."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    holder: Any = nn.Module()
    holder.weight = nn.Parameter(weight, requires_grad=False)
    dispatch_cpu_unquantized_gemm(holder, remove_weight=True)

    def compute(x: Tensor, _: Tensor, bias: Tensor | None) -> Tensor:
        product: Tensor = holder.cpu_linear(x, holder.weight, bias)
        return product

    return compute
