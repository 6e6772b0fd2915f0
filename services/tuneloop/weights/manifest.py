"""The manifest of a version: its identity, its origin and the hashes of its files.

A version is a folder: `manifest.json` beside `*.safetensors` and the model's JSON files. It never
changes after it is published. Weights are only ever loaded from safetensors.
"""

import json
from collections.abc import Mapping
from dataclasses import field
from datetime import datetime

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from tuneloop.errors import WeightsRefused
from tuneloop.policies import WeightsKind

MANIFEST_NAME = "manifest.json"
strict = ConfigDict(extra="forbid")


@validated(frozen=True, slots=True, kw_only=True, config=strict)
class ManifestFile:
    """A file of the version."""

    name: str
    sha256: str
    bytes: int


@validated(frozen=True, slots=True, kw_only=True, config=strict)
class ManifestData:
    """The data that the version learned from since its parent."""

    samples: Mapping[str, int] = field(default_factory=dict)
    """The number by objective: kto, dpo, ppo, reward_model."""
    first_step: int = 0
    last_step: int = 0
    """The optimizer steps, without the first, with the last."""
    oldest_feedback_time: datetime | None = None
    newest_feedback_time: datetime | None = None
    """The times at which the gateway accepted the oldest and the newest feedback used."""


@validated(frozen=True, slots=True, kw_only=True, config=strict)
class Manifest:
    """A version, described."""

    policy: str
    """Name of the policy, or of the reward model."""
    version: int
    parent: int
    kind: WeightsKind
    base_model: str
    """Name or id of version 0."""
    base_model_sha256: str
    """SHA-256 over the base model's configuration and tensor names and shapes; it must match."""
    algorithms: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    data: ManifestData = field(default_factory=ManifestData)
    files: tuple[ManifestFile, ...]
    created_time: datetime
    signature: str = ""
    """Ed25519 over the manifest without this field, base64."""

    @property
    def sha256(self) -> dict[str, str]:
        """The hashes of the files, by name."""
        return {file.name: file.sha256 for file in self.files}


adapter: TypeAdapter[Manifest] = TypeAdapter(Manifest)


def to_json(manifest: Manifest) -> bytes:
    """Return the bytes of `manifest.json`, with sorted keys: equal manifests have equal bytes."""
    document = adapter.dump_python(manifest, mode="json")
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"


def from_json(data: bytes) -> Manifest:
    """Parse `manifest.json`. Raises `WeightsRefused` naming the field at fault."""
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "document"
        raise WeightsRefused(f"manifest.json: {where}: {problem['msg']}", param=where) from error
