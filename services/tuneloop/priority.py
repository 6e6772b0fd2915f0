"""How much of a busy processor a process or a thread gets beside others."""

import contextlib
import os
import threading

BACKGROUND_NICENESS = 10
"""Of a thread that works beside sampling."""


def lower_priority(pid: int, niceness: int) -> None:
    """Make a process of ours at least `niceness` (0 to 19) nice; one that has ended is left alone.

    Where Linux schedules by session (sched(7), "The autogroup feature"), niceness counts only
    among the processes of one session.
    """
    with contextlib.suppress(ProcessLookupError):
        # Nobody but root may take niceness back.
        niceness = max(niceness, os.getpriority(os.PRIO_PROCESS, pid))
        os.setpriority(os.PRIO_PROCESS, pid, niceness)


def lower_thread_priority() -> None:
    """Have this thread, and those it starts, yield to sampling on a processor both want."""
    lower_priority(threading.get_native_id(), BACKGROUND_NICENESS)
