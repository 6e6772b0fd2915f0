"""Lowers the priority of processes and threads on a busy processor."""

import contextlib
import os
import threading

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
