"""Free space on the disks that a process writes to, read whenever its metrics are."""

import shutil
from pathlib import Path

from prometheus_client import Gauge

free_bytes = Gauge(
    "tuneloop_disk_free_bytes",
    "Bytes free on the disk of a folder this process writes to: data or weights_cache.",
    ["folder"],
)
size_bytes = Gauge("tuneloop_disk_size_bytes", "Bytes of that disk in all.", ["folder"])


def watch_folder(name: str, folder: Path) -> None:
    """Report the disk of `folder`, which need not exist yet, under `name`."""

    def usage() -> "shutil._ntuple_diskusage":
        resolved = folder.resolve()
        return shutil.disk_usage(next(f for f in (resolved, *resolved.parents) if f.exists()))

    free_bytes.labels(name).set_function(lambda: usage().free)
    size_bytes.labels(name).set_function(lambda: usage().total)
