"""Kills what a process leaves behind when it dies without stopping it (`kill -9`, out of memory).

`Reaper` runs this file as a script, in a session of its own and with a pipe from the process that
it watches. A line `+123` notes a process group and `-123` forgets it; with `--descendants` the
script also notes the other descendants of its parent. `done` means that the parent has cleaned up.
If the pipe closes without it, the parent is dead, and whatever is still noted is killed.

The script needs the standard library alone, and psutil for descendants. It can hold descriptors
open, such as a lock that no process may take before the killing is done.
"""

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger("tuneloop.reaper")

DESCENDANTS = "--descendants"
DONE = "done"
LOOK_SECONDS = 2.0
"""Between looks at the descendants: each reads all of /proc, beside an engine at work."""
GRACE_SECONDS = 1.0
"""How long descendants get to end by themselves."""


class Reaper:
    """Starts the script, restarts it if it dies, and tells it about process groups."""

    def __init__(self, *, descendants: bool = False, held_descriptors: Sequence[int] = ()) -> None:
        """Start watching this process; the script keeps `held_descriptors` open."""
        self._descendants = descendants
        self._held = tuple(held_descriptors)
        self._groups: set[int] = set()
        self._process = self._start()

    @property
    def pid(self) -> int:
        """Id of the script's process."""
        return self._process.pid

    def add_group(self, group: int) -> None:
        """Note a process group that was started."""
        self._groups.add(group)
        self._tell(f"+{group}")

    def end_group(self, group: int) -> None:
        """Kill what is left of a process group, and forget it."""
        kill_group(group)
        self._groups.discard(group)
        self._tell(f"-{group}")

    def close(self) -> None:
        """Kill the groups that are left, then end the script; descendants are left alone."""
        for group in list(self._groups):
            self.end_group(group)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._write(DONE)
            self._process.stdin.close()
        self._process.wait()

    def _start(self) -> subprocess.Popen[str]:
        # Without descendants it runs isolated, so that neither the environment nor what is
        # installed can keep it from starting.
        options = ["-P"] if self._descendants else ["-I", "-S"]
        arguments = [DESCENDANTS] if self._descendants else []
        return subprocess.Popen(
            [sys.executable, *options, str(Path(__file__)), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=self._held,
            start_new_session=True,
            text=True,
        )

    def _tell(self, line: str) -> None:
        try:
            self._write(line)
        except BrokenPipeError:
            logger.warning("the reaper was killed; starting another")
            self._process.wait()
            self._process = self._start()
            for group in self._groups:
                self._write(f"+{group}")

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()


def kill_group(group: int) -> None:
    """Kill a process group, if it exists."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


class Descendants:
    """The descendants of this script's parent, other than the script."""

    def __init__(self) -> None:
        import psutil

        self._psutil = psutil
        self._own = psutil.Process()
        self._parent = self._own.parent()
        self._noted: set[Any] = set()

    def look(self) -> None:
        """Note those that run now."""
        with contextlib.suppress(self._psutil.NoSuchProcess):
            if self._parent is not None:
                # One whose own parent has ended is no longer listed, so none is forgotten.
                found = set(self._parent.children(recursive=True))
                self._noted = {p for p in self._noted if p.is_running()} | found

    def kill(self) -> None:
        """Kill those that do not end by themselves in a moment."""
        left = [process for process in self._noted if process != self._own]
        _, alive = self._psutil.wait_procs(left, timeout=GRACE_SECONDS)
        for process in alive:
            with contextlib.suppress(self._psutil.NoSuchProcess):
                process.kill()


def read_lines(descendants: Descendants | None) -> Iterator[str]:
    """Yield the lines of standard input until it closes, looking at descendants in between."""
    pending = b""
    while True:
        if descendants is not None:
            descendants.look()
            if not select.select([0], [], [], LOOK_SECONDS)[0]:
                continue
        data = os.read(0, 4096)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        yield from (line.decode() for line in lines)


def main() -> None:
    """Note groups and descendants until the pipe closes, then kill what is left of them."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    descendants = Descendants() if DESCENDANTS in sys.argv else None
    groups: set[int] = set()
    for line in read_lines(descendants):
        if line == DONE:
            return
        if line.startswith("+"):
            groups.add(int(line[1:]))
        else:
            groups.discard(int(line[1:]))
    for group in groups:
        kill_group(group)
    if descendants is not None:
        descendants.kill()


if __name__ == "__main__":
    main()
