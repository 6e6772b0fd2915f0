"""Ends what a killed process leaves behind.

Run as `python -m tuneloop.generation.vllm.process_guard`.

vLLM computes in processes of its own, which survive a `kill -9` of the one that started them and
keep their memory. This guard is a child of that process with a pipe from it: it notes the other
descendants, and when the pipe closes without a word it kills those that are still there.
"""

import contextlib
import select
import signal
import sys

import psutil

INTERVAL = 2.0
"""Seconds between looks at the descendants: each reads all of /proc, beside an engine at work."""
GRACE = 1.0
"""Seconds that they get to end by themselves."""


def main() -> None:
    """Watch the parent until standard input closes, then kill its other descendants."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    me = psutil.Process()
    parent = me.parent()
    seen: set[psutil.Process] = set()
    parent_lives = True
    while parent_lives:
        with contextlib.suppress(psutil.NoSuchProcess):
            if parent is not None:
                # A process may have lost its own parent in between, so none is forgotten.
                seen = {p for p in seen if p.is_running()} | set(parent.children(recursive=True))
        parent_lives = not select.select([sys.stdin], [], [], INTERVAL)[0]
    if sys.stdin.buffer.read():
        return  # a word: the parent has cleaned up
    left = [process for process in seen if process != me]
    _, alive = psutil.wait_procs(left, timeout=GRACE)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    main()
