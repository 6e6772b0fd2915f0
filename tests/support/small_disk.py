"""A small disk that can be filled, and whose power can be cut: ext4 in a file, or else a tmpfs.

Both take the right to mount. What the cut takes is what ext4 had not written yet: the file system
is shut down without another write, unmounted, and mounted again, which replays its journal. The
mount options let nothing be written early by chance: no commit of the journal but for an fsync,
and no flush of a file only because it was renamed over another.
"""

import contextlib
import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MEBIBYTE = 1 << 20
SIZE = 512 * MEBIBYTE
OPTIONS = "loop,commit=900,noauto_da_alloc,barrier=0"
"""Without barriers a sync need not wait for the disk below, which keeps its power."""
SHUT_DOWN, WITHOUT_FLUSH = 0x8004587D, 2
"""The ioctl of ext4 and XFS that ends all writing at once, as xfstests use it."""
UNMOUNT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class SmallDisk:
    """A mounted file system of `SIZE` bytes."""

    root: Path
    image: Path | None
    """What holds it; None for a tmpfs, whose power cannot be cut."""

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Leave no room within the block."""
        ballast = self.root / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file:
                fill(file.fileno())
            yield
        finally:
            ballast.unlink()

    def cut_power(self) -> None:
        """From here on every write fails; what was not synced is lost."""
        descriptor = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUT_DOWN, struct.pack("I", WITHOUT_FLUSH))
        finally:
            os.close(descriptor)

    def restore_power(self) -> None:
        """Mount it again, with what had been written; nobody may have a file open any more."""
        if self.image is None:
            raise ValueError("a tmpfs loses everything without power")
        unmount(self.root)
        mount_image(self.image, self.root)


def fill(descriptor: int) -> None:
    """Let a file take all room, in ever smaller pieces."""
    end, piece = 0, MEBIBYTE
    while piece:
        try:
            os.posix_fallocate(descriptor, end, piece)
            end += piece
        except OSError:
            piece //= 2


def mount_image(image: Path, root: Path) -> None:
    """Mount the file system in a file."""
    run("mount", "-t", "ext4", "-o", OPTIONS, str(image), str(root))


def unmount(root: Path) -> None:
    """Unmount; waits for those whose end the kernel has not finished yet."""
    deadline = time.monotonic() + UNMOUNT_SECONDS
    while True:
        try:
            return run("umount", str(root))
        except subprocess.CalledProcessError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def run(*command: str) -> None:
    """Run a command without its output."""
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def small_disk(root: Path) -> Iterator[SmallDisk | None]:
    """Mount one at `root`; None where that is not allowed."""
    root.mkdir(parents=True, exist_ok=True)
    disk = mount_ext4(root) or mount_tmpfs(root)
    try:
        yield disk
    finally:
        if disk is not None:
            run("umount", "--lazy", str(root))
        if disk is not None and disk.image is not None:
            disk.image.unlink()


def mount_ext4(root: Path) -> SmallDisk | None:
    """Mount a file system in a file beside `root`; None where that is not allowed."""
    image = root.with_name(f"{root.name}.img")
    with image.open("wb") as file:
        file.truncate(SIZE)
    try:
        # No blocks that only root may fill.
        run("mkfs.ext4", "-q", "-m", "0", str(image))
        mount_image(image, root)
    except (OSError, subprocess.CalledProcessError):
        image.unlink()
        return None
    return SmallDisk(root, image)


def mount_tmpfs(root: Path) -> SmallDisk | None:
    """Mount a tmpfs; None where that is not allowed."""
    try:
        run("mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(root))
    except (OSError, subprocess.CalledProcessError):
        return None
    return SmallDisk(root, None)
