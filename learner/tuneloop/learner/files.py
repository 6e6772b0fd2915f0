"""Folders that appear whole or not at all, the lock of a data folder, fingerprints of weights."""

import fcntl
import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from tuneloop.errors import FailedPrecondition
from tuneloop.files import sync, sync_folder

PARTIAL = ".partial"


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `folder`, sync it, and give it its name in one rename."""
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    sync_folder(partial)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    sync(folder.parent)


def keep_only(parent: Path, names: set[str]) -> list[str]:
    """Remove the folders of `parent` that are not in `names`; return the names removed."""
    strangers = [p for p in parent.iterdir() if p.name not in names] if parent.exists() else []
    for path in strangers:
        shutil.rmtree(path)
    return sorted(path.name for path in strangers)


PIECES = 16
PIECE_BYTES = 1 << 16


def fingerprint(folder: Path) -> str:
    """Hash the names and sizes of the safetensors files, and pieces spread over each.

    This tells models apart that were trained differently, as every tensor differs then.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for piece in range(PIECES):
                file.seek(piece * max(0, size - PIECE_BYTES) // (PIECES - 1))
                digest.update(file.read(PIECE_BYTES))
    return digest.hexdigest()


def take_lock(data_dir: Path, wait_seconds: float = 3.0) -> TextIO:
    """Lock the data folder against a second learner; the lock ends with the process.

    Waits for a learner that is stopping. Raises `FailedPrecondition`.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    file = (data_dir / "lock").open("w")
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                problem = f"another learner works in {data_dir}; stop it first"
                raise FailedPrecondition(problem) from error
            time.sleep(0.1)
