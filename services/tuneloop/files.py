"""Files and folders that appear whole or not at all, also after a power failure."""

import os
from pathlib import Path

ANY_MODE = 0o666
"""What the process's umask leaves of it, as for any new file."""


def write_file(path: Path, data: bytes, *, mode: int = ANY_MODE, synced: bool = True) -> None:
    """Replace a file in one rename: a reader sees the old content or the new one.

    Without `synced` the new content may be lost to a power failure, but not to a crash.
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


def rename_folder(partial: Path, final: Path) -> None:
    """Sync a folder and its files to disk, then give it its final name in one rename."""
    for path in (*partial.iterdir(), partial):
        sync(path)
    partial.rename(final)
    sync(final.parent)


def sync(path: Path) -> None:
    """Write a file or a folder's entries through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
