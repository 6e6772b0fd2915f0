"""Where versions are kept: what publishers and loaders ask of a weight store.

`tuneloop.weights.filesystem` is the implementation, over local folders and object storage.
"""

from pathlib import Path
from typing import Protocol

from tuneloop.policies import WeightsReference
from tuneloop.weights.manifest import Manifest


class WeightStore(Protocol):
    """Immutable versions by policy and number. All methods block: call them from a thread."""

    def publish(self, folder: Path, manifest: Manifest) -> WeightsReference:
        """Store the weights in `folder` as the version `manifest` names; it is whole or absent.

        `manifest.files` and `manifest.signature` are filled in. Publishing the same content again
        gives the same reference. Raises `Conflict` when the version exists with other content,
        `WeightsRefused` for files a version must not hold, `Unavailable` when the store is.
        """
        ...

    def fetch(self, reference: WeightsReference) -> tuple[Manifest, Path]:
        """A verified local copy of a version; the folder must not be changed.

        Raises `WeightsRefused` where hash, size, signature or names are wrong, `NotFound`,
        `Unavailable`.
        """
        ...

    def manifest(self, policy: str, version: int) -> Manifest:
        """The verified manifest of a version. Raises as `fetch` does."""
        ...

    def versions(self, policy: str) -> list[int]:
        """Published versions in rising order."""
        ...
