"""The machine's clock and memory."""

import time
from pathlib import Path

import pytest

from tuneloop.host import available_memory, steady_time


def test_a_clock_that_is_set_back_shortens_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    before = steady_time()
    assert abs(before - time.time()) < 60
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert before <= steady_time() < before + 60


def test_memory_that_can_be_had_is_bounded_by_the_containers_limit(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16000 kB\nMemAvailable:    8000 kB\nHugePages_Free:    0\n")
    of_machine = 8000 * 1024
    assert available_memory(meminfo, tmp_path / "absent") == of_machine
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    for limit, expected in (("1000", 450), ("max", of_machine), ("99999999", of_machine)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert available_memory(meminfo, tmp_path) == expected
