"""How much of a busy processor a process gets beside others."""

import contextlib
import os
from pathlib import Path


def lower_priority(pid: int, niceness: int) -> None:
    """Make a process of ours at least `niceness` (0 to 19) nice; one that has ended is left alone.

    Where Linux schedules by session (sched(7), "The autogroup feature"), niceness counts only
    among the processes of one session: a process that leads one has that session's niceness set
    as well, or it would get as much as a session that serves.
    """
    with contextlib.suppress(ProcessLookupError):
        # Nobody but root may take niceness back.
        niceness = max(niceness, os.getpriority(os.PRIO_PROCESS, pid))
        os.setpriority(os.PRIO_PROCESS, pid, niceness)
        if os.getsid(pid) == pid:
            # Absent without that feature; read-only in some containers.
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/autogroup").write_text(str(niceness))
