"""Ends the processes of a supervisor that died without stopping them (`kill -9`, out of memory).

Runs as a script of its own, on the standard library alone, in its own session. The supervisor
writes `+123` when it starts a process group and `-123` when it has ended it; the end of that input
means that the supervisor is gone, and every group still noted is killed. It holds the lock of the
data folder as well, so that nobody can start there before that is done.
"""

import os
import signal
import sys


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


if __name__ == "__main__":
    main()
