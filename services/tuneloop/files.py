"""Files and folders that appear whole or not at all, also after a power failure."""

import os
from pathlib import Path

ANY_MODE = 0o666
"""What the process's umask leaves of it, as for any new file."""


def write_file(path: Path, data: bytes, *, mode: int = ANY_MODE, synced: bool = True) -> None:
    """Replace a file in one rename: a reader sees the old content or the new one.

    Without `synced` a power failure may lose the new content, and leave an empty file.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if synced:
                file.flush()
                os.fsync(file.fileno())
        partial.rename(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    if synced:
        sync(path.parent)


def rename_folder(partial: Path, final: Path) -> None:
    """Sync a folder and all in it to disk, then give it its final name in one rename."""
    sync_folder(partial)
    partial.rename(final)
    sync(final.parent)


def sync_folder(folder: Path) -> None:
    """Write a folder and all in it through to the disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def sync(path: Path) -> None:
    """Write a file or a folder's entries through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
