"""LoRA on a policy or a reward model, and the plain weights it comes to."""

from typing import Any

import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

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
