"""How much of a completion repeats."""

import pytest

from tuneloop.learner.stats.repetition import repetition


def test_repeated_4_grams() -> None:
    assert repetition([1, 2, 3]) == 0.0
    assert repetition([1, 2, 3, 4, 5, 6]) == 0.0
    assert repetition([7] * 13) == pytest.approx(0.9)
