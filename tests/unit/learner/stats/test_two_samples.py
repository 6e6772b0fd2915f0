"""The interval of two means that may be looked at again and again."""

import math

import numpy as np
import pytest

from tuneloop.learner.stats.intervals import Sums
from tuneloop.learner.stats.two_samples import difference_margin


def test_the_margin_by_hand() -> None:
    # Two hundred values each, half of them 1: σ² = 0.25 · 400/399, information 100.
    values = Sums.of([0.0, 1.0] * 100)
    log = -2 * math.log(0.05)
    scaled = log + math.log(log) + 1
    expected = math.sqrt(0.25 * 400 / 399) * math.sqrt(
        2 * (scaled + 1) / (100 * scaled) * math.log(math.sqrt(scaled + 1) / 0.05)
    )
    assert difference_margin(values, values, 0.05) == pytest.approx(expected)
    # About three standard errors of the difference, which are 0.05 each.
    assert 0.14 < expected < 0.16


def test_more_values_on_either_side_make_it_narrower() -> None:
    few, many = Sums.of([0.0, 1.0] * 20), Sums.of([0.0, 1.0] * 500)
    both = [difference_margin(one, other, 0.05) for one in (few, many) for other in (few, many)]
    assert both[0] > both[1] == pytest.approx(both[2], rel=1e-3)
    assert both[1] > both[3]


def test_looking_after_every_value_is_seldom_wrong() -> None:
    """Equal samples are told apart at any of 1000 looks in fewer than one of twenty runs."""
    source = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        anchor = Sums.of(source.normal(size=300))
        values = source.normal(size=1000)
        totals, squares = np.cumsum(values), np.cumsum(values**2)
        wrong += any(
            abs(anchor.mean - totals[n - 1] / n)
            > difference_margin(
                anchor,
                Sums(count=n, total=float(totals[n - 1]), squares=float(squares[n - 1])),
                0.05,
            )
            for n in range(30, 1001, 5)
        )
    assert wrong / 200 < 0.05
