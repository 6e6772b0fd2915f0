"""A process steps back behind others."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from tuneloop.host import lower_priority


@pytest.fixture
def pid() -> Iterator[int]:
    child = subprocess.Popen(["sleep", "60"])
    yield child.pid
    child.kill()
    child.wait()


def test_the_process_gets_nicer(pid: int) -> None:
    lower_priority(pid, 7)
    assert os.getpriority(os.PRIO_PROCESS, pid) == 7


def test_niceness_is_never_taken_back(pid: int) -> None:
    lower_priority(pid, 9)
    lower_priority(pid, 3)
    assert os.getpriority(os.PRIO_PROCESS, pid) == 9


def test_a_process_that_has_ended_is_left_alone() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    lower_priority(child.pid, 5)
