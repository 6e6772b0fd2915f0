"""Means and spreads, by hand."""

import math

from tuneloop.learner.stats.intervals import standard_deviation


def test_the_standard_deviation_of_a_sample() -> None:
    assert standard_deviation([1.0, 3.0]) == math.sqrt(2)
    assert standard_deviation([0.0, 4.0, 8.0]) == 4.0


def test_values_that_are_all_the_same_are_compared_as_they_are() -> None:
    assert standard_deviation([2.0, 2.0, 2.0]) == 1.0
    assert standard_deviation([1.0]) == 1.0
    assert standard_deviation([]) == 1.0
