"""The sequential test: fair bets, honest under continuous looking, and able to tell."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneloop.learner.stats.sequential import (
    CLAIMS,
    Observation,
    differences,
    log_capital,
    lower_bound,
    upper_bound,
)

EQUAL = np.array([0.0])
"""The claim that the arms are equal."""
difference = st.floats(-1, 1)


@settings(deadline=None)
@given(st.lists(difference, max_size=40), difference)
def test_no_bet_is_worth_more_than_it_costs(history: list[float], claim: float) -> None:
    """If the claim is true, the next observation changes the capital by nothing on average."""
    claims = np.array([claim])
    chance = (claim + 1) / 2  # of a 1 rather than a -1: their mean is the claim
    before, up, down = (
        math.exp(log_capital(values, claims)[0])
        for values in (history, [*history, 1.0], [*history, -1.0])
    )
    assert chance * up + (1 - chance) * down == pytest.approx(before)


@settings(deadline=None)
@given(st.lists(difference, max_size=60))
def test_bounds_are_in_order_and_mirror_each_other(values: list[float]) -> None:
    low, high = lower_bound(values, 0.05), upper_bound(values, 0.05)
    assert -1 <= low <= high <= 1
    mirrored = [-value for value in values]
    assert lower_bound(mirrored, 0.05) == -high
    assert low <= lower_bound(values, 0.2)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=60))
def test_every_block_has_both_arms_and_none_is_used_twice(seen: list[tuple[bool, float]]) -> None:
    observations = [Observation(canary=canary, value=value) for canary, value in seen]
    found = differences(observations)
    assert all(-1 <= d <= 1 for d in found)
    smaller = min(sum(c for c, _ in seen), sum(not c for c, _ in seen))
    assert (len(found) == 0) == (smaller == 0)
    assert len(found) <= smaller
    equal = [Observation(canary=canary, value=0.25) for canary, _ in seen]
    assert differences(equal) == [0.0] * len(found)


def test_nothing_is_said_of_nothing() -> None:
    assert (lower_bound([], 0.05), upper_bound([], 0.05)) == (-1.0, 1.0)
    assert log_capital([], CLAIMS).tolist() == [0.0] * len(CLAIMS)


def test_many_observations_are_worked_on_in_pieces() -> None:
    values = np.random.default_rng(3).uniform(-1, 1, 5000)
    whole = log_capital(values.tolist(), EQUAL)[0]
    stakes, mean, variance, count = 0.0, 0.5, 0.25, 1
    for x in (values + 1) / 2:
        gap = mean - 0.5
        stake = min(max(gap / (variance + gap * gap), 0.0), 0.75 / 0.5)
        stakes += math.log1p(stake * (x - 0.5))
        count += 1
        mean += (x - mean) / count
        variance += ((x - mean) ** 2 - variance) / count
    assert whole == pytest.approx(stakes)


def traffic(
    random: np.random.Generator,
    users: int,
    share: float,
    canary: float,
    stable: float,
    drift: float,
) -> list[float]:
    """Differences of thumbs of users who come one by one, while everybody's mood moves."""
    seen = []
    for number in range(users):
        is_canary = bool(random.random() < share)
        mood = drift * math.sin(2 * math.pi * number / users)
        rate = (canary if is_canary else stable) + mood
        seen.append(Observation(canary=is_canary, value=float(random.random() < rate)))
    return differences(seen)


def ever_shown_worse(values: list[float], alpha: float) -> bool:
    """Whether somebody who looks after every block is ever told that the canary is worse."""
    mirrored = [-value for value in values]
    return any(
        log_capital(mirrored[:t], EQUAL)[0] >= math.log(1 / alpha)
        for t in range(1, len(values) + 1)
    )


def ever_significant(values: list[float], alpha: float) -> bool:
    """The same for somebody who looks with an ordinary one-sided test (normal, known level)."""
    z = {0.1: 1.2816}[alpha]
    for t in range(10, len(values) + 1):
        part = np.array(values[:t])
        error = part.std(ddof=1) / math.sqrt(t)
        if error > 0 and part.mean() / error < -z:
            return True
    return False


@pytest.mark.parametrize("drift", [0.0, 0.3])
def test_false_alarms_stay_below_alpha_however_often_one_looks(drift: float) -> None:
    random = np.random.default_rng(11)
    runs = [traffic(random, 300, 0.3, 0.6, 0.6, drift) for _ in range(120)]
    alpha = 0.1
    assert sum(ever_shown_worse(run, alpha) for run in runs) / len(runs) <= alpha
    # The same looks with a test that was made for one look are wrong more often than not.
    assert sum(ever_significant(run, alpha) for run in runs) / len(runs) > 3 * alpha


def test_it_tells_a_worse_arm_before_long() -> None:
    random = np.random.default_rng(12)
    runs = [traffic(random, 400, 0.3, 0.4, 0.7, 0.0) for _ in range(60)]
    assert sum(upper_bound(run, 0.05 / 3) <= 0 for run in runs) / len(runs) > 0.9


def test_it_tells_that_an_equal_arm_is_hardly_worse() -> None:
    random = np.random.default_rng(13)
    runs = [traffic(random, 3000, 0.3, 0.7, 0.7, 0.0) for _ in range(20)]
    assert sum(lower_bound(run, 0.05) >= -0.1 for run in runs) / len(runs) >= 0.8


def test_it_does_not_tell_a_worse_arm_from_the_margin_too_often() -> None:
    """At the margin itself a promotion is the error that alpha bounds."""
    random = np.random.default_rng(14)
    runs = [traffic(random, 1000, 0.3, 0.5, 0.6, 0.0) for _ in range(100)]
    assert sum(lower_bound(run, 0.1) > -0.1 for run in runs) / len(runs) <= 0.1
