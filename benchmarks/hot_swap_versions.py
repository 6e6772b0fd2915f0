"""Versions to swap between: small random changes of a model, published into a real weight store."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuneloop.policies import WeightsKind, WeightsReference
from tuneloop.weights.filesystem import FilesystemStore
from tuneloop.weights.manifest import Manifest
from tuneloop.weights.shapes import base_model_sha256
from tuneloop.weights.signing import Signer, Verifier, write_key_pair

LORA_RANK, LORA_ALPHA = 16, 32
"""As the learner's by default."""
LORA_STD, FULL_SHARE = 1e-3, 1e-3
"""Small enough that the answers stay those of the model."""


class Publication:
    """A weight store under `root` with a key pair of its own."""

    def __init__(self, root: Path, model: Path, kind: WeightsKind) -> None:
        private, self.verify_key = write_key_pair(root / "keys")
        self.uri = str(root / "weights")
        self._scratch = root / "scratch"
        self._model = model
        self._kind = kind
        self._sha256 = base_model_sha256(model)
        self._store = FilesystemStore(
            self.uri, verifier=Verifier.from_file(self.verify_key), signer=Signer.from_file(private)
        )

    def publish(self, count: int) -> list[WeightsReference]:
        """Make and publish versions 1 to `count`."""
        make = adapters if self._kind is WeightsKind.LORA else full_weights
        folders = make(self._model, self._scratch, count)
        return [self._publish(number, folder) for number, folder in enumerate(folders, start=1)]

    def _publish(self, version: int, folder: Path) -> WeightsReference:
        manifest = Manifest(
            policy="tuneloop",
            version=version,
            parent=version - 1,
            kind=self._kind,
            base_model=self._model.name,
            base_model_sha256=self._sha256,
            files=(),
            created_time=datetime.now(UTC),
        )
        return self._store.publish(folder, manifest)


def adapters(model: Path, folder: Path, count: int) -> Iterator[Path]:
    """Adapters of every linear layer; each takes the place of the one before."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(loaded(model), config)
    chance = torch.Generator().manual_seed(0)
    for _ in range(count):
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=LORA_STD, generator=chance)
        adapted.save_pretrained(folder)
        yield folder


def full_weights(model: Path, folder: Path, count: int) -> Iterator[Path]:
    """All weights, each a little off; each takes the place of the one before."""
    import torch

    changed = loaded(model)
    chance = torch.Generator().manual_seed(0)
    for _ in range(count):
        with torch.no_grad():
            for weight in changed.parameters():
                noise = torch.randn(weight.shape, generator=chance)
                weight.add_(noise * weight.std() * FULL_SHARE)
        changed.save_pretrained(folder)
        yield folder


def loaded(model: Path) -> Any:
    """The model in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
