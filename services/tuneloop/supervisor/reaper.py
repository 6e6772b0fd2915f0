"""Ends the processes of a supervisor that died without stopping them (`kill -9`, out of memory).

Runs as a script of its own, on the standard library alone, in its own session. The supervisor
writes `+123` when it starts a process group and `-123` when it has ended it; the end of that input
means that the supervisor is gone, and every group still noted is killed. It holds the lock of the
data folder as well, so that nobody can start there before that is done.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path


def kill_group(group: int) -> None:
    """Kill a process group, if there is one."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def main() -> None:
    """Note groups until the input ends, then kill those that are left."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line.startswith("+"):
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        kill_group(group)


logger = logging.getLogger("tuneloop.supervisor")


SCRIPT = Path(__file__).with_name("reaper.py")


class Reaper:
    """Starts the guardian, and again should it die; tells it of groups."""

    def __init__(self, lock_descriptor: int | None = None) -> None:
        self._lock = () if lock_descriptor is None else (lock_descriptor,)
        self._groups: set[int] = set()
        self._process = self._start()

    def add(self, group: int) -> None:
        """Note a process group that was started."""
        self._groups.add(group)
        self._tell(f"+{group}")

    def end(self, group: int) -> None:
        """Kill what is left of a process group, and forget it."""
        kill_group(group)
        self._groups.discard(group)
        self._tell(f"-{group}")

    def close(self) -> None:
        """End whatever is left, and the guardian."""
        for group in list(self._groups):
            self.end(group)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=self._lock,
            start_new_session=True,
            text=True,
        )

    def _tell(self, line: str) -> None:
        try:
            self._write(line)
        except BrokenPipeError:
            logger.warning("the guardian was killed; starting another")
            self._process.wait()
            self._process = self._start()
            for group in self._groups:
                self._write(f"+{group}")

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()


if __name__ == "__main__":
    main()
