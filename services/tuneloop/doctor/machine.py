"""Memory, disk and GPUs."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from tuneloop.doctor.finding import Finding, fine, problem, warning
from tuneloop.gpus.devices import DriverError, Gpu
from tuneloop.gpus.memory import GIB

MEMORY_NEEDED = 6 * GIB
"""For the default models with everything on one machine."""
DISK_NEEDED, DISK_WANTED = 1 * GIB, 10 * GIB
CGROUP = Path("/sys/fs/cgroup")


def check_gpus(gpus: Sequence[Gpu], *, running: bool) -> Iterator[Finding]:
    """Yield a finding for each GPU, or one that says what the lack of a GPU means."""
    if not gpus:
        yield fine("gpu", "no NVIDIA GPU: serving and learning use the CPU")
    for number, gpu in enumerate(gpus):
        found = f"{number}: {gpu.name}, {gpu.memory / GIB:.0f} GiB, driver {gpu.driver}"
        if not running and gpu.memory and gpu.used > gpu.memory / 2:
            yield warning(
                "gpu",
                f"{found}; {gpu.used / GIB:.0f} GiB are in use",
                "nvidia-smi shows which processes use it; or set CUDA_VISIBLE_DEVICES",
            )
        else:
            yield fine("gpu", found)


def driver_problem(error: DriverError) -> Finding:
    """Return the finding for a driver that does not work."""
    return problem(
        "gpu", f"nvidia-smi fails: {error}", "load or install the NVIDIA driver again (reboot?)"
    )


def check_memory(*, running: bool) -> Finding:
    """Check the memory of the machine, or of the container if that is less."""
    import psutil

    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    limit = cgroup_number("memory.max")
    if limit is not None and limit < total:
        total = limit
        available = min(available, limit - (cgroup_number("memory.current") or 0))
    found = f"{total / GIB:.1f} GiB, {available / GIB:.1f} free"
    if total < MEMORY_NEEDED:
        remedy = f"give it {MEMORY_NEEDED // GIB} GiB, or run some processes elsewhere"
        return problem("memory", found, remedy)
    if available < MEMORY_NEEDED and not running:
        remedy = f"stop other programs: the default models need {MEMORY_NEEDED // GIB} GiB"
        return warning("memory", found, remedy)
    return fine("memory", found)


def cgroup_number(name: str) -> int | None:
    """Read a number of this container's control group; None if there is no limit."""
    try:
        text = (CGROUP / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def check_disk(what: str, folder: Path, option: str) -> Finding:
    """Check that `folder` is writable and has room; `option` is how to name another."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        remedy = f"make it writable for this user, or name another folder with {option}"
        return problem(what, f"{folder}: {existing} is not writable", remedy)
    free = shutil.disk_usage(existing).free
    found = f"{folder}: {free / GIB:.1f} GiB free"
    remedy = f"free some space, or name a folder on a larger disk with {option}"
    if free < DISK_NEEDED:
        return problem(what, found, remedy)
    return warning(what, found, remedy) if free < DISK_WANTED else fine(what, found)
