"""Shares of a batch: nobody weighs more than one."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneloop.learner.batching.trust import effective_share, factors

weights_and_owners = st.dictionaries(
    st.text(min_size=1, max_size=3),
    st.tuples(st.floats(0.01, 10), st.sampled_from("abc")),
    min_size=1,
    max_size=12,
)


@settings(max_examples=50, deadline=None)
@given(weights_and_owners, st.floats(0.05, 1))
def test_no_owner_weighs_more_than_the_share_and_nobody_gains(
    samples: dict[str, tuple[float, str]], share: float
) -> None:
    weights = {name: weight for name, (weight, _) in samples.items()}
    owners = {name: owner for name, (_, owner) in samples.items()}
    limit = share * math.fsum(weights.values())
    found = factors(weights, owners, limit)
    assert all(0 < factor <= 1 for factor in found.values())
    for owner in set(owners.values()):
        mine = [weights[n] * found[n] for n in weights if owners[n] == owner]
        assert math.fsum(mine) <= limit * (1 + 1e-9) or all(
            found[n] == 1 for n in weights if owners[n] == owner
        )


def test_a_share_that_cannot_be_held_is_an_equal_one() -> None:
    assert effective_share(0.25, 1) == 1.0
    assert effective_share(0.25, 3) == pytest.approx(1 / 3)
    assert effective_share(0.25, 100) == 0.25
    assert factors({"a": 1.0, "b": 1.0}, {}, 0.1) == {"a": 1.0, "b": 1.0}
