"""The protocol of a weight store, which keeps published versions.

`tuneloop.weights.filesystem` is the implementation, over local folders and object storage.
"""

from pathlib import Path
from typing import Protocol

from tuneloop.policies import WeightsReference
from tuneloop.weights.manifest import Manifest


class WeightStore(Protocol):
    """Immutable versions by policy and number. All methods block: call them from a thread."""

    def publish(self, folder: Path, manifest: Manifest) -> WeightsReference:
        """Store the weights in `folder` as the version of `manifest`, completely or not at all.

        `manifest.files` and `manifest.signature` are filled in. Publishing the same content again
        returns the same reference. Raises `Conflict` if the version exists with other content,
        `WeightsRefused` for files that a version must not have, `Unavailable` if the store is down.
        """
        ...

    def fetch(self, reference: WeightsReference) -> tuple[Manifest, Path]:
        """Return a verified local copy of a version, whose folder must not be changed.

        Raises `WeightsRefused` if hash, size, signature or names are wrong, `NotFound`,
        `Unavailable`.
        """
        ...

    def manifest(self, policy: str, version: int) -> Manifest:
        """Return the verified manifest of a version. Raises as `fetch` does."""
        ...

    def versions(self, policy: str) -> list[int]:
        """Return the published versions in ascending order."""
        ...

    def delete(self, policy: str, version: int) -> None:
        """Delete a version, if it is there. Raises `Unavailable`."""
        ...
