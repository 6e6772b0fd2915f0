"""A step says how much memory was needed."""

import subprocess
import sys
from dataclasses import replace

from tuneloop.learner.memory import peak_memory_bytes
from tuneloop.learner.step_result import StepResult

GROWING = """
from tuneloop.learner.memory import peak_memory_bytes
before = peak_memory_bytes()
held = bytearray(b"x") * 100_000_000
during = peak_memory_bytes()
del held
print(during - before, peak_memory_bytes() - during)
"""


def test_the_peak_is_in_bytes_and_never_falls() -> None:
    printed = subprocess.check_output([sys.executable, "-c", GROWING], text=True)
    grown, after = map(int, printed.split())
    assert 80_000_000 < grown < 120_000_000
    assert after >= 0


def test_a_result_keeps_the_peak_of_its_step_and_is_not_told_apart_by_it() -> None:
    result = StepResult(metrics={"loss": 1.0})
    assert 10_000_000 < result.peak_memory_bytes <= peak_memory_bytes()
    assert replace(result, peak_memory_bytes=0) == result
    assert replace(result, skipped=True).peak_memory_bytes == result.peak_memory_bytes
