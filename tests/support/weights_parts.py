"""Versions to publish, and a store to publish them to."""

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tuneloop.policies import WeightsKind
from tuneloop.weights.filesystem import FilesystemStore
from tuneloop.weights.manifest import Manifest
from tuneloop.weights.signing import Signer, Verifier

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def make_manifest(version: int = 1, policy: str = "tuneloop") -> Manifest:
    return Manifest(
        policy=policy,
        version=version,
        parent=version - 1,
        kind=WeightsKind.LORA,
        base_model="tiny",
        base_model_sha256="0" * 64,
        files=(),
        created_time=NOW,
    )


def make_weights(folder: Path, value: float = 1.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"w": np.full((4, 2), value, dtype=np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("written by PEFT")
    return folder


@dataclasses.dataclass
class Place:
    root: str
    keys: tuple[Path, Path]
    cache: Path

    def store(self) -> FilesystemStore:
        return FilesystemStore(
            self.root,
            signer=Signer.from_file(self.keys[0]),
            verifier=Verifier.from_file(self.keys[1]),
            cache_dir=self.cache,
        )
