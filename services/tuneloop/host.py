"""The machine: its clock, free disk and memory, and processor time for what may wait."""

import contextlib
import os
import shutil
import threading
import time
from pathlib import Path

from prometheus_client import Gauge

free_bytes = Gauge(
    "tuneloop_disk_free_bytes",
    "Bytes free on the disk of a folder this process writes to: data or weights_cache.",
    ["folder"],
)
size_bytes = Gauge("tuneloop_disk_size_bytes", "Bytes of that disk in all.", ["folder"])


_START = time.time() - time.monotonic()


def steady_time() -> float:
    """Return seconds since the epoch, by the clock as it was at the start.

    A clock that is set while the process runs makes no interval longer or shorter.
    """
    return _START + time.monotonic()


def watch_folder(name: str, folder: Path) -> None:
    """Report the disk of `folder`, which need not exist yet, under `name`."""

    def usage() -> "shutil._ntuple_diskusage":
        resolved = folder.resolve()
        return shutil.disk_usage(next(f for f in (resolved, *resolved.parents) if f.exists()))

    free_bytes.labels(name).set_function(lambda: usage().free)
    size_bytes.labels(name).set_function(lambda: usage().total)


CGROUP = Path("/sys/fs/cgroup")


def available_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = CGROUP) -> int:
    """Return the bytes of main memory that can be had, within the container's limit if it has one.

    Pages that hold files count as free (proc_meminfo(5), cgroup v2's memory controller).
    """
    values = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    machine = int(values["MemAvailable"].split()[0]) * 1024
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        lines = (cgroup / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return machine  # no cgroup, or "max"
    cached = dict(line.split() for line in lines)
    return min(machine, limit - used + int(cached.get("inactive_file", 0)))


BACKGROUND_NICENESS = 10
"""The niceness of a thread that works beside sampling."""


def lower_priority(pid: int, niceness: int) -> None:
    """Raise a process's niceness to at least `niceness` (0 to 19), unless it has ended.

    If Linux schedules by session (sched(7), "The autogroup feature"), niceness has an effect only
    within one session.
    """
    with contextlib.suppress(ProcessLookupError):
        # Only root may lower niceness again.
        niceness = max(niceness, os.getpriority(os.PRIO_PROCESS, pid))
        os.setpriority(os.PRIO_PROCESS, pid, niceness)


def lower_thread_priority() -> None:
    """Let sampling run before this thread, and before threads that it starts."""
    lower_priority(threading.get_native_id(), BACKGROUND_NICENESS)
