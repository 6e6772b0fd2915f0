"""A transformers model that holds several versions: LoRA adapters, or weights replaced in place.

Not thread-safe: one thread owns it.
"""

from pathlib import Path
from typing import Any

import torch

from tuneloop.errors import WeightsRefused


class VersionedModel:
    """A causal language model, its current version, and the versions it can switch to."""

    def __init__(self, folder: Path) -> None:
        from tuneloop.models.causal_lm import load_causal_lm

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.model: Any = load_causal_lm(folder, dtype, self.device)
        self.peft: Any = None
        self.selected = 0

    @property
    def vocab_size(self) -> int:
        """Entries of the output layer."""
        return int(self.model.config.vocab_size)

    @property
    def max_model_len(self) -> int:
        """The number of positions that the model supports."""
        return int(self.model.config.max_position_embeddings)

    def forward(self, token_ids: list[int], cache: Any) -> tuple[torch.Tensor, Any]:
        """Return logits [vocab] after the last of `token_ids`, on the CPU, and the updated cache.

        `cache` holds the tokens before them; None if `token_ids` are all tokens.
        """
        with torch.inference_mode():
            output = self.model(
                input_ids=torch.tensor([token_ids], device=self.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return output.logits[0, -1].float().cpu(), output.past_key_values

    def select(self, version: int) -> None:
        """Use an adapter from now on; 0 is the base model."""
        if self.peft is None or version == self.selected:
            return
        if version == 0:
            self.peft.base_model.disable_adapter_layers()
        else:
            self.peft.base_model.enable_adapter_layers()
            self.peft.set_adapter(adapter_name(version), inference_mode=True)
        self.selected = version

    def add_adapter(self, version: int, folder: Path) -> None:
        """Load a PEFT adapter beside the others. Raises `WeightsRefused` if it does not fit."""
        from peft import PeftModel

        name = adapter_name(version)
        try:
            if self.peft is None:
                self.peft = PeftModel.from_pretrained(self.model, folder, adapter_name=name)
                self.peft.base_model.disable_adapter_layers()
            else:
                self.peft.load_adapter(folder, adapter_name=name)
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            raise WeightsRefused(f"version {version}: {error}") from error
        self.peft.eval()

    def drop_adapter(self, version: int) -> None:
        """Unload an adapter."""
        if self.selected == version:
            self.select(0)
        name = adapter_name(version)
        if self.peft is not None and name in self.peft.peft_config:
            self.peft.delete_adapter(name)

    def replace_weights(self, folder: Path) -> None:
        """Copy a folder's weights over the model's. Raises `WeightsRefused` before any change."""
        from safetensors.torch import load_file

        new: dict[str, torch.Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            new.update(load_file(path))
        state = self.model.state_dict()
        for name, tensor in new.items():
            if name not in state or state[name].shape != tensor.shape:
                raise WeightsRefused(f"{name}: does not fit the model", param=name)
        # A tied output layer is in the state but may be missing from the files.
        given = {state[name].data_ptr() for name in new}
        missing = [name for name, tensor in state.items() if tensor.data_ptr() not in given]
        if missing:
            raise WeightsRefused(f"{missing[0]}: missing", param=missing[0])
        with torch.no_grad():
            for name, tensor in new.items():
                state[name].copy_(tensor)


def adapter_name(version: int) -> str:
    """Return the name of a version in PEFT."""
    return f"version-{version}"
