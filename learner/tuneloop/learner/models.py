"""The policy that learns, the reference policy it is held to, and the value head.

With LoRA the reference policy is the base model with the adapter switched off, so there is no
second copy; with full weights it is a frozen copy. Either way it is version 0.
"""

import contextlib
import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from tuneloop.errors import WeightsRefused
from tuneloop.learner.batching import SequenceBatch
from tuneloop.models.reward_model import quiet
from tuneloop.policies import WeightsKind

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


class PolicyModel:
    """A causal language model with an adapter or all its weights to train."""

    def __init__(
        self,
        folder: Path,
        *,
        kind: WeightsKind = WeightsKind.LORA,
        lora_rank: int = 16,
        lora_alpha: int = 32,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        """Load version 0 from a `save_pretrained` folder; dropout stays off for ever.

        On CPU everything is float32. On a GPU the arithmetic is bfloat16; what is trained, and the
        softmax, stay float32.
        """
        self.kind = kind
        self.device = torch.device(device)
        self._folder = folder
        frozen_in_half = kind is WeightsKind.LORA and self.device.type == "cuda"
        dtype = torch.bfloat16 if frozen_in_half else torch.float32
        with quiet():
            self._model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, use_safetensors=True
            )
        self._model.to(self.device).eval()
        self._plain_head = _head_is_plain(self._model, self.device)
        self._reference: Any = None
        self._adapted: Any = None
        if kind is WeightsKind.LORA:
            self._adapted = _add_adapter(self._model, lora_rank, lora_alpha, seed)
        else:
            self._reference = copy.deepcopy(self._model).requires_grad_(False)
        hidden_size = self._model.get_output_embeddings().weight.shape[1]
        self.value_head = nn.Linear(hidden_size, 1, device=self.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding: token ids are below it."""
        return int(self._model.get_input_embeddings().weight.shape[0])

    @property
    def max_length(self) -> int:
        """Tokens the model has positions for."""
        config = self._model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 1 << 20)

    def parameters(self) -> dict[str, nn.Parameter]:
        """What training changes, by name; without the value head."""
        root: nn.Module = self._adapted or self._model
        return {name: p for name, p in root.named_parameters() if p.requires_grad}

    def logprobs(self, batch: SequenceBatch) -> Tensor:
        """Return (B, C) log π of each completion token, at its temperature; takes gradients."""
        return batch.scatter(self._run(self._model, batch)[0])

    def logprobs_and_values(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Return (B, C) log-probs, and (B, C) values of the states the tokens were chosen in.

        The value head reads detached hidden states: its loss cannot move the policy.
        """
        logprobs, hidden = self._run(self._model, batch)
        values = self.value_head(hidden.detach().float()).squeeze(-1)
        return batch.scatter(logprobs), batch.scatter(values)

    @torch.no_grad()
    def reference_logprobs(self, batch: SequenceBatch) -> Tensor:
        """Return (B, C) log π_ref of each completion token, at its temperature."""
        with self._reference_policy() as reference:
            return batch.scatter(self._run(reference, batch)[0])

    @contextlib.contextmanager
    def _reference_policy(self) -> Iterator[Any]:
        if self._adapted is None:
            yield self._reference
            return
        with self._adapted.disable_adapter():
            yield self._model

    def _run(self, model: Any, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Return (N,) log-probs of the targets and (N, hidden) the states they come from."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            if self._plain_head:
                output = model.base_model(input_ids=batch.input_ids, use_cache=False)
                hidden = output.last_hidden_state[batch.predicts]
                logits = model.get_output_embeddings()(hidden)
            else:
                output = model(
                    input_ids=batch.input_ids, use_cache=False, output_hidden_states=True
                )
                hidden = output.hidden_states[-1][batch.predicts]
                logits = output.logits[batch.predicts]
        logits = logits.float() / batch.temperatures.unsqueeze(-1)
        return -functional.cross_entropy(logits, batch.targets, reduction="none"), hidden

    def save_weights(self, folder: Path, *, base_model: str) -> None:
        """Write what generation loads: a PEFT folder, or a `save_pretrained` folder.

        `base_model` is the name of version 0; the machine's paths stay out of what is published.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if self._adapted is None:
            with quiet():
                self._model.save_pretrained(folder)
            for name in TOKENIZER_FILES:
                if (self._folder / name).is_file():
                    shutil.copyfile(self._folder / name, folder / name)
            return
        tensors = {name: t.cpu().contiguous() for name, t in self._adapter_tensors().items()}
        save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        config = self._adapted.peft_config["default"].to_dict()
        config |= {
            "base_model_name_or_path": base_model,
            "inference_mode": True,
            "target_modules": sorted(config["target_modules"]),
        }
        document = json.dumps(config, indent=2, sort_keys=True, default=str)
        (folder / "adapter_config.json").write_text(document + "\n")

    def load_weights(self, folder: Path) -> None:
        """Go on from a published version; raises `WeightsRefused` naming the tensor that differs.

        The reference policy stays version 0.
        """
        expected = self._model.state_dict()
        files = sorted(folder.glob("model*.safetensors"))
        if self._adapted is not None:
            expected = self._adapter_tensors()
            files = [folder / ADAPTER_WEIGHTS]
        given: dict[str, Tensor] = {}
        try:
            for file in files:
                given |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise WeightsRefused(f"{folder.name}: {error}") from error
        _check_tensors(given, expected)
        if self._adapted is not None:
            set_peft_model_state_dict(self._adapted, given)
            return
        with torch.no_grad():
            for name, tensor in given.items():
                expected[name].copy_(tensor)

    def _adapter_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = get_peft_model_state_dict(
            self._adapted, save_embedding_layers=False
        )
        return tensors


def _add_adapter(model: Any, rank: int, alpha: int, seed: int) -> Any:
    """Put LoRA on every linear layer but the head; B starts at 0, so it changes nothing yet."""
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
        return get_peft_model(model, config).eval()


@torch.no_grad()
def _head_is_plain(model: Any, device: torch.device) -> bool:
    """Whether the logits are the head applied to the hidden states and nothing more.

    Some families cap or scale them afterwards; for those the whole model has to be run.
    """
    probe = torch.arange(4, device=device).unsqueeze(0)
    hidden = model.base_model(input_ids=probe, use_cache=False).last_hidden_state
    logits = model(input_ids=probe, use_cache=False).logits
    return torch.allclose(model.get_output_embeddings()(hidden), logits, rtol=1e-3, atol=1e-3)


def _check_tensors(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise `WeightsRefused` unless `given` fits; of tied tensors one name is enough."""
    given_places = {expected[name].data_ptr() for name in given if name in expected}
    for name in sorted(expected.keys() - given.keys()):
        if expected[name].data_ptr() not in given_places:
            raise WeightsRefused(f"tensor {name} is missing", param=name)
    for name, tensor in given.items():
        if name not in expected:
            raise WeightsRefused(f"tensor {name} is not one of the model's", param=name)
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(expected[name].shape)}"
            raise WeightsRefused(f"tensor {name} has shape {shapes}", param=name)
        if not torch.isfinite(tensor).all():
            raise WeightsRefused(f"tensor {name} is not finite", param=name)
