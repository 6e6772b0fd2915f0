"""The machine's clock."""

import time

import pytest

from tuneloop.host import steady_time


def test_a_clock_that_is_set_back_shortens_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    before = steady_time()
    assert abs(before - time.time()) < 60
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert before <= steady_time() < before + 60
