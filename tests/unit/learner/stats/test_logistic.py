"""Logistic regression: by hand, at its optimum, and whatever it is given."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.learner.stats.logistic import (
    INTERCEPT_PRIOR,
    fit_logistic,
    predict,
    sigmoid,
    with_intercept,
)

RARELY = np.zeros((10, 1))
OFTEN = np.ones((10, 1))


def ups(count: int) -> np.ndarray:
    return np.array([1.0] * count + [0.0] * (10 - count))


def test_two_groups_by_hand() -> None:
    """2 of 10 and 8 of 10: log odds −ln 4, and ln 4 more than that twice over."""
    features, labels = np.vstack([RARELY, OFTEN]), np.concatenate([ups(2), ups(8)])
    found = fit_logistic(features, labels, np.ones(20), precision=1e-9)
    assert found == pytest.approx([-math.log(4), 2 * math.log(4)], abs=2e-3)
    assert predict(found, np.array([[0.0], [1.0]])) == pytest.approx([0.2, 0.8], abs=1e-3)


def test_without_features_it_is_the_share() -> None:
    labels = np.array([1.0, 1.0, 1.0, 0.0])
    (found,) = fit_logistic(np.zeros((4, 0)), labels, np.ones(4), precision=1.0)
    assert found == pytest.approx(math.log(3), abs=2e-3)
    (weighed,) = fit_logistic(np.zeros((2, 0)), labels[2:], np.array([3.0, 1.0]), precision=1.0)
    assert weighed == pytest.approx(found)


def test_the_prior_keeps_what_was_always_so_finite() -> None:
    """One answer with the signal, which went up; by hand 0.5/(1 + 0.25) after one step."""
    features, labels = np.array([[1.0], [0.0], [0.0]]), np.array([1.0, 1.0, 0.0])
    intercept, coefficient = fit_logistic(features, labels, np.ones(3), precision=1.0)
    assert 0.2 < coefficient < 0.6
    # Where the gradient vanishes: y − p of the one answer is what the prior holds against it.
    assert coefficient == pytest.approx(1 - 1 / (1 + math.exp(-intercept - coefficient)))
    same = fit_logistic(np.zeros((5, 0)), np.ones(5), np.ones(5), precision=1.0)
    assert 3 < same[0] < 20


rows = st.lists(
    st.tuples(st.booleans(), st.booleans(), st.floats(0, 1), st.booleans(), st.floats(0.01, 5)),
    min_size=1,
    max_size=40,
)


@given(rows)
def test_the_gradient_vanishes_where_it_ends(
    given_rows: list[tuple[bool, bool, float, bool, float]],
) -> None:
    table = np.array(given_rows, dtype=np.float64)
    features, labels, weights = table[:, :3], table[:, 3], table[:, 4]
    found = fit_logistic(features, labels, weights, precision=1.0)
    design = with_intercept(features)
    prior = np.array([INTERCEPT_PRIOR, 1.0, 1.0, 1.0])
    gradient = design.T @ (weights * (labels - sigmoid(design @ found))) - prior * found
    assert np.abs(gradient).max() < 1e-3


def test_large_scores_do_not_overflow() -> None:
    assert sigmoid(np.array([-1000.0, 0.0, 1000.0])) == pytest.approx([0.0, 0.5, 1.0])
