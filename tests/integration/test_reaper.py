"""The reaper ends what a killed process leaves running."""

import subprocess
import sys
import time

import psutil
import pytest


@pytest.mark.parametrize("cleanly", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_reaper_kills_what_a_killed_process_leaves_behind(cleanly: bool) -> None:
    parent_code = (
        "import subprocess, sys; from tuneloop.reaper import Reaper;"
        "reaper = Reaper(descendants=True);"
        "child = subprocess.Popen(['sleep', '300'], stdout=subprocess.DEVNULL);"
        "print(child.pid, reaper.pid, flush=True);"
        "sys.stdin.read(); reaper.close()"
    )
    command = [sys.executable, "-c", parent_code]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child, reaper = (psutil.Process(int(pid)) for pid in parent.stdout.readline().split())
    while not any("psutil" in mapping.path for mapping in reaper.memory_maps()):
        time.sleep(0.1)
    time.sleep(3)  # it looks at its parent's children every two seconds
    if not cleanly:
        parent.kill()
    parent.communicate()
    _, alive = psutil.wait_procs([child, reaper], timeout=5 if cleanly else 20)
    assert alive == ([child] if cleanly else [])
    if cleanly:
        child.kill()
