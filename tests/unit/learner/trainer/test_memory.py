"""A step says how much memory was needed."""

import re
from dataclasses import replace
from pathlib import Path

from tuneloop.learner.trainer.base import StepResult, peak_memory_bytes


def test_the_peak_is_in_bytes_and_at_least_what_the_kernel_counts() -> None:
    held = bytearray(b"x") * 50_000_000
    counted = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert counted is not None
    # The kernel keeps its counts a little behind.
    assert 0.9 * int(counted[1]) * 1024 < peak_memory_bytes() < 1 << 40
    assert len(held) < peak_memory_bytes()


def test_a_result_keeps_the_peak_of_its_step_and_is_not_told_apart_by_it() -> None:
    result = StepResult(metrics={"loss": 1.0})
    assert 10_000_000 < result.peak_memory_bytes <= peak_memory_bytes()
    assert replace(result, peak_memory_bytes=0) == result
    assert replace(result, skipped=True).peak_memory_bytes == result.peak_memory_bytes
