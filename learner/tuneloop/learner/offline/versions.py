"""Any version there is, by how people name it: a folder, a number of a data folder, a model.

3                       version 3 in --data-dir; 0 is the base model
out, ./out              a run's output, or any folder of full weights
out/adapter             a PEFT folder, on its base model
smollm2-135m-instruct   a catalog name or a hub id
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.errors import NotFound, WeightsRefused
from tuneloop.models.resolve import resolve
from tuneloop.policies import WeightsKind
from tuneloop.weights.files import verify_file
from tuneloop.weights.filesystem import FilesystemStore
from tuneloop.weights.manifest import Manifest
from tuneloop.weights.shapes import base_model_sha256
from tuneloop.weights.signing import Verifier


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionFolder:
    """Where the weights of a version are."""

    name: str
    base: Path
    """Folder of full weights with configuration and tokenizer; itself where there is no adapter."""
    weights: Path | None = None
    """Folder of what replaces the base's weights: an adapter, or all of them."""
    adapter: bool = False
    """Whether `weights` is a PEFT folder."""
    base_name: str = ""
    """The base model as the user named it when the version was trained or exported."""
    manifest: Manifest | None = None
    """Of a version of a service."""
    data_dir: Path | None = None
    """Where that service keeps its data."""

    @property
    def title(self) -> str:
        """A name for people and for files: letters, digits, dots, hyphens and underscores."""
        base = Path(self.base_name or self.name).name
        parts = [base]
        if self.manifest is not None:
            parts += [self.manifest.policy, f"v{self.manifest.version}"]
        elif self.base_name and self.data_dir is None:
            folder = Path(self.name).absolute()
            parts.append(folder.parent.name if folder.name == "adapter" else folder.name)
        return re.sub(r"[^\w.-]+", "-", "-".join(parts), flags=re.ASCII)

    @property
    def folder(self) -> Path:
        """The folder with the full weights; without an adapter only."""
        return self.base if self.weights is None else self.weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """Finds versions; `data_dir` is of `tuneloop up`, `base` the model that adapters are put on."""

    data_dir: Path | None = None
    base: str | None = None
    policy: str = "tuneloop"
    cache_dir: Path = Path("~/.cache/tuneloop")

    def find(self, reference: str) -> VersionFolder:
        """Return the version of a name; raises `NotFound`, `InvalidRequest`, `WeightsRefused`."""
        if reference.isdecimal() and not Path(reference).exists():
            return self._numbered(int(reference))
        folder = Path(reference).expanduser()
        if (folder / "adapter_config.json").is_file():
            name = self.base or base_of(folder)
            return VersionFolder(
                name=reference,
                base=self._resolve(name),
                weights=folder.resolve(),
                adapter=True,
                base_name=name,
            )
        name = self.base or base_of_run(folder)
        return VersionFolder(name=reference, base=self._resolve(reference), base_name=name)

    def _numbered(self, number: int) -> VersionFolder:
        """Return a version of the weight store, its signature and every file verified."""
        if self.data_dir is None:
            raise NotFound(
                f"version {number}: give the data folder it is in with --data-dir", param="data_dir"
            )
        root = self.data_dir.expanduser().absolute()
        name = self.base or base_of_service(root)
        base = self._resolve(name)
        if number == 0:
            return VersionFolder(name="0", base=base, base_name=name, data_dir=root)
        key = root / "keys" / "manifest_public.pem"
        store = FilesystemStore(str(root / "weights"), verifier=Verifier.from_file(key))
        manifest = store.manifest(self.policy, number)
        if manifest.base_model_sha256 != base_model_sha256(base):
            raise WeightsRefused(
                f"version {number} is of {manifest.base_model}, which {base} is not; name the base "
                "model with --base",
                param="base",
            )
        folder = root / "weights" / self.policy / f"{number:08d}"
        for file in manifest.files:
            verify_file(folder / file.name, file)
        adapter = manifest.kind is WeightsKind.LORA
        return VersionFolder(
            name=str(number),
            base=base,
            weights=folder,
            adapter=adapter,
            base_name=name,
            manifest=manifest,
            data_dir=root,
        )

    def _resolve(self, reference: str) -> Path:
        return resolve(reference, self.cache_dir.expanduser())


def base_of(adapter: Path) -> str:
    """Return the model an adapter was trained on, by its own word; raises `WeightsRefused`."""
    try:
        document: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_bytes())
        name = document["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsRefused(f"{adapter}: adapter_config.json: {error!r}") from error
    return str(name)


def base_of_run(folder: Path) -> str:
    """Return the model that a run of `tuneloop train` began with; empty where it is no run's."""
    try:
        return str(json.loads((folder / "run.json").read_bytes())["model"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def base_of_service(data_dir: Path) -> str:
    """Return the model that a data folder belongs to; raises `NotFound` where it does not say."""
    try:
        return str(json.loads((data_dir / "model.json").read_bytes())["name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotFound(
            f"{data_dir}: no data folder of tuneloop up: {error}", param="data_dir"
        ) from error
