"""Where versions come from: settings that every process that loads weights shares."""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from pydantic_settings import BaseSettings

if TYPE_CHECKING:
    from tuneloop.weights.store import WeightStore


class WeightsSettings(BaseSettings):
    """Part of the settings of generation and reward."""

    weights_uri: str = Field(
        "./.tuneloop/weights", description="folder or fsspec URL of the weight store"
    )
    weights_cache_dir: Path = Field(
        Path(".tuneloop/weights-cache"), description="folder for verified copies of versions"
    )
    verify_key_file: Path = Field(
        Path(".tuneloop/keys/manifest_public.pem"), description="PEM file that verifies manifests"
    )

    def open_store(self) -> "WeightStore":
        """Open the store to fetch versions from. Raises `SettingsError`."""
        # fsspec is imported only where a store is used.
        from tuneloop.weights.filesystem import FilesystemStore
        from tuneloop.weights.signing import Verifier

        return FilesystemStore(
            self.weights_uri,
            verifier=Verifier.from_file(self.verify_key_file),
            cache_dir=self.weights_cache_dir,
        )
