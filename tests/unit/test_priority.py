"""A process steps back behind others, also where Linux schedules by session."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuneloop.priority import lower_priority


@pytest.fixture(params=[True, False])
def process(request: pytest.FixtureRequest) -> Iterator[tuple[int, bool]]:
    """A process, and whether it leads a session."""
    child = subprocess.Popen(["sleep", "60"], start_new_session=request.param)
    yield child.pid, request.param
    child.kill()
    child.wait()


def session_niceness(pid: int) -> int | None:
    """Of the session, where Linux schedules by sessions; the first of all has none to set."""
    autogroup = Path(f"/proc/{pid}/autogroup")
    words = autogroup.read_text().split() if autogroup.exists() else []
    return int(words[-1]) if words else None


def test_the_process_and_the_session_it_leads_get_nicer(process: tuple[int, bool]) -> None:
    pid, leads = process
    before = session_niceness(pid)
    lower_priority(pid, 7)
    assert os.getpriority(os.PRIO_PROCESS, pid) == 7
    assert session_niceness(pid) == (7 if leads and before is not None else before)


def test_niceness_is_never_taken_back(process: tuple[int, bool]) -> None:
    pid, _ = process
    lower_priority(pid, 9)
    lower_priority(pid, 3)
    assert os.getpriority(os.PRIO_PROCESS, pid) == 9


def test_a_process_that_has_ended_is_left_alone() -> None:
    child = subprocess.Popen(["true"], start_new_session=True)
    child.wait()
    lower_priority(child.pid, 5)
