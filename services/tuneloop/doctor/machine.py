"""Memory, disk and GPUs."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneloop.doctor.finding import Finding, fine, problem, warning

GIB = 1024**3
MEMORY_NEEDED = 6 * GIB
"""By the default models with everything on one machine."""
DISK_NEEDED, DISK_WANTED = 1 * GIB, 10 * GIB
CGROUP = Path("/sys/fs/cgroup")
NVIDIA_SMI_SECONDS = 20
GPU_FIELDS = ("name", "driver_version", "memory.total", "memory.used")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU; memory in bytes."""

    name: str
    driver: str
    memory: int
    used: int

    @property
    def driver_major(self) -> int:
        """The number before the first point; 0 where there is none."""
        major = self.driver.split(".")[0]
        return int(major) if major.isdecimal() else 0


class NoAnswer(Exception):
    """nvidia-smi is there and fails."""


def find_gpus() -> list[Gpu]:
    """The machine's GPUs, none where nvidia-smi is not installed. Raises `NoAnswer`."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoAnswer(str(error)) from error
    if done.returncode != 0:
        raise NoAnswer((done.stdout + done.stderr).strip() or f"status {done.returncode}")
    return [gpu_from(line) for line in done.stdout.splitlines() if line.strip()]


def gpu_from(line: str) -> Gpu:
    """A GPU from its line; memory is 0 where the driver does not tell (shared memory)."""
    name, driver, total, used = (part.strip() for part in line.rsplit(",", 3))
    mebibytes = [int(number) if number.isdecimal() else 0 for number in (total, used)]
    return Gpu(name=name, driver=driver, memory=mebibytes[0] << 20, used=mebibytes[1] << 20)


def check_gpus(gpus: Sequence[Gpu], *, running: bool) -> Iterator[Finding]:
    """A finding for each GPU; whoever has none is told what that means."""
    if not gpus:
        yield fine("gpu", "no NVIDIA GPU: answers and learning take the CPU")
    for number, gpu in enumerate(gpus):
        found = f"{number}: {gpu.name}, {gpu.memory / GIB:.0f} GiB, driver {gpu.driver}"
        if not running and gpu.memory and gpu.used > gpu.memory / 2:
            yield warning(
                "gpu",
                f"{found}; {gpu.used / GIB:.0f} GiB are taken",
                "nvidia-smi shows by whom; or name another GPU in CUDA_VISIBLE_DEVICES",
            )
        else:
            yield fine("gpu", found)


def no_answer(error: NoAnswer) -> Finding:
    """A driver that does not work."""
    return problem(
        "gpu", f"nvidia-smi fails: {error}", "load or install the NVIDIA driver again (reboot?)"
    )


def check_memory(*, running: bool) -> Finding:
    """Memory of the machine, or of the container where that is less."""
    import psutil

    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    limit = cgroup_number("memory.max")
    if limit is not None and limit < total:
        total = limit
        available = min(available, limit - (cgroup_number("memory.current") or 0))
    found = f"{total / GIB:.1f} GiB, {available / GIB:.1f} free"
    if total < MEMORY_NEEDED:
        mend = f"give it {MEMORY_NEEDED // GIB} GiB, or run some processes elsewhere"
        return problem("memory", found, mend)
    if available < MEMORY_NEEDED and not running:
        mend = f"stop other programs: {MEMORY_NEEDED // GIB} GiB are needed with the default models"
        return warning("memory", found, mend)
    return fine("memory", found)


def cgroup_number(name: str) -> int | None:
    """A number of this container's control group; None where there is no limit."""
    try:
        text = (CGROUP / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def check_disk(what: str, folder: Path, option: str) -> Finding:
    """Whether `folder` can be written, and the room there; `option` names another."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        mend = f"make it writable for this user, or name another folder with {option}"
        return problem(what, f"{folder}: {existing} cannot be written", mend)
    free = shutil.disk_usage(existing).free
    found = f"{folder}: {free / GIB:.1f} GiB free"
    mend = f"make room, or name a folder on a larger disk with {option}"
    if free < DISK_NEEDED:
        return problem(what, found, mend)
    return warning(what, found, mend) if free < DISK_WANTED else fine(what, found)
