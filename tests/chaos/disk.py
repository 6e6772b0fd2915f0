"""A small disk that can be filled: a tmpfs, which takes the right to mount one."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MEBIBYTE = 1 << 20
SIZE = 512 * MEBIBYTE


@dataclass(frozen=True, slots=True)
class SmallDisk:
    """A mounted tmpfs of `SIZE` bytes."""

    root: Path

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Leave no room within the block."""
        ballast = self.root / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(MEBIBYTE))
            yield
        finally:
            ballast.unlink()

    def free_bytes(self) -> int:
        """Room that is left."""
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize


@contextlib.contextmanager
def small_disk(root: Path) -> Iterator[SmallDisk | None]:
    """Mount one at `root`; None where that is not allowed."""
    root.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(root)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    try:
        yield SmallDisk(root)
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)
