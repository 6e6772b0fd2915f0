"""Ratings of users with scales of their own, on one scale."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.learner.ledger.queue.ratings import LIMIT, Ratings, Scale, scale_of

RATINGS = st.lists(st.integers(-10, 10).map(float), min_size=1, max_size=8)


def test_by_hand() -> None:
    crowd = scale_of([1.0, 3.0, 9.0, 9.0])
    assert (crowd.mean, crowd.deviation**2) == pytest.approx((5.5, 12.75))
    own = scale_of([1.0, 3.0], crowd)
    # (1 + 3 + 5.5) / 3, and (2.1667² + 0.1667² + 12.75 + 2.3333²) / 3.
    assert (own.mean, own.deviation**2) == pytest.approx((3.166667, 7.638889), abs=1e-6)
    assert own.standardised(3.0) == pytest.approx(-0.060302, abs=1e-6)
    assert scale_of([], crowd) == crowd


def test_a_users_scale_is_drawn_to_the_crowds() -> None:
    harsh, mild = [1.0, 2.0, 1.0, 2.0], [4.0, 5.0, 4.0, 5.0]
    ratings = Ratings({"harsh": harsh, "mild": mild, "new": [5.0]})
    # A harsh user's 2 says more than a mild user's 4.
    assert ratings.standardised("harsh", 2.0) > ratings.standardised("mild", 4.0)
    assert 0 < ratings.standardised("new", 5.0) < 2


def test_what_has_no_spread_says_nothing_and_outliers_are_bounded() -> None:
    assert Ratings({"one": [3.0]}).standardised("one", 3.0) == 0.0
    assert Ratings({}).standardised("nobody", 3.0) == 0.0
    assert Ratings({"a": [0.0] * 99 + [1e9]}).standardised("a", 1e9) == LIMIT


@given(RATINGS, RATINGS)
def test_the_prior_is_one_more_rating_spread_like_the_crowds(
    own: list[float], crowd: list[float]
) -> None:
    """Counting each own rating n times beside the n of the crowd once gives the same moments."""
    found = scale_of(own, scale_of(crowd))
    expected = scale_of([*(own * len(crowd)), *crowd])
    assert (found.mean, found.deviation) == pytest.approx(
        (expected.mean, expected.deviation), abs=1e-9
    )


@given(RATINGS, st.integers(1, 5).map(float), st.integers(-5, 5).map(float))
def test_neither_shift_nor_stretch_matters(values: list[float], by: float, more: float) -> None:
    plain = Ratings({"u": values})
    other = Ratings({"u": [by * value + more for value in values]})
    for value in values:
        found = other.standardised("u", by * value + more)
        assert found == pytest.approx(plain.standardised("u", value), abs=1e-7)


def test_a_scale_alone() -> None:
    assert Scale(mean=2.0, deviation=0.5).standardised(3.0) == 2.0
