"""LoRA on a policy or a reward model, and the plain weights it comes to."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tuneloop.host import available_memory

ADAPTER = "default"


def add_reward_adapter(module: Any, *, head: str, rank: int, alpha: int, seed: int) -> None:
    """Put LoRA on every linear layer but the head, which is trained whole; freeze the rest.

    B starts at 0, so it changes nothing yet.
    """
    targets = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear | Conv1D) and name != head
    ]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in module.modules()),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, module, ADAPTER)
    module.eval()
    # What is trained is float32, whatever the frozen weights are.
    module.get_submodule(head).float().requires_grad_(True)


@torch.no_grad()
def merged_weights(module: Any) -> dict[str, Tensor]:
    """Return the weights with the adapter added in, by the names they have without it.

    The module stays as it is: merging in place and taking it back would leave rounding behind.
    """
    weights = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in module.state_dict().items()
        if ".lora_" not in name
    }
    for name, part in module.named_modules():
        if isinstance(part, LoraLayer):
            weight = weights[f"{name}.weight"]
            delta = part.get_delta_weight(ADAPTER)
            weights[f"{name}.weight"] = weight.float() + delta.float()
    return weights


def add_adapter(model: Any, rank: int, alpha: int, seed: int) -> Any:
    """Put LoRA on every linear layer but the head; B starts at 0, so it changes nothing yet.

    Experts that are one tensor are no linear layers: in a mixture of experts attention is trained.
    """
    head = model.get_output_embeddings()
    targets = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=sorted(targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config).eval()
    # PEFT leaves an empty set there for experts, and writes it as a text that it cannot read.
    chosen = adapted.peft_config[ADAPTER]
    chosen.target_parameters = sorted(chosen.target_parameters or ()) or None
    return adapted


class AdapterSwitch:
    """Has an adapted model compute without its adapter, or with it added to the weights."""

    def __init__(self, adapted: Any) -> None:
        self._adapted = adapted
        self._merged: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        """Of each layer its weight, what that is, and what it is with the adapter."""

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Leave the adapter out inside the block."""
        if not self._merged:
            with self._adapted.disable_adapter():
                yield
            return
        self._exchange(merged=False)
        try:
            yield
        finally:
            self._exchange(merged=True)

    @contextlib.contextmanager
    def merged(self) -> Iterator[None]:
        """Add the adapter to the weights inside the block, in which nothing is trained or saved.

        A CPU spends a fifth of a pass over many tokens, and a fourth of one over a few, on the
        adapter's small products. Adding in place and taking it back would leave rounding behind, so
        other weights stand in; without the memory for them nothing changes.
        """
        layers = [part for part in self._adapted.modules() if isinstance(part, LoraLayer)]
        if not _can_merge(layers):
            yield
            return
        with torch.no_grad():
            self._merged = [
                (w, w.data, w.data + layer.get_delta_weight(ADAPTER))
                for layer in layers
                for w in (layer.base_layer.weight,)
            ]
        try:
            with self._adapted.disable_adapter():
                self._exchange(merged=True)
                yield
        finally:
            self._exchange(merged=False)
            self._merged = []

    def _exchange(self, *, merged: bool) -> None:
        for weight, plain, total in self._merged:
            weight.data = total if merged else plain


def _can_merge(layers: Sequence[Any]) -> bool:
    weights = [layer.base_layer.weight for layer in layers]
    plain = all(w.device.type == "cpu" and w.dtype == torch.float32 for w in weights)
    return plain and 2 * sum(w.nbytes for w in weights) < available_memory()
