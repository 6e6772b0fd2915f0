"""Shares of a batch: nobody weighs more than one."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneloop.learner.batching.trust import (
    Counted,
    RecentJudgements,
    effective_share,
    factors,
)

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


def test_what_an_owner_said_before_is_part_of_their_share() -> None:
    weights, owners = {"a": 2.0, "b": 1.0}, {"a": "ann", "b": "bob"}
    found = factors(weights, owners, 4.0, counted={"ann": 3.0, "bob": 9.0}, least=0.25)
    # One of four is left for ann's two; bob has had more than his share, and keeps the least.
    assert found == {"a": 0.5, "b": 0.25}


def judgement(user: str, weight: float = 1.0) -> Counted:
    return Counted(weight, user, "", weight / 2)


def test_a_batch_stands_beside_the_latest_judgements_of_its_step() -> None:
    recent = RecentJudgements(4.0)
    assert recent.beside({"a": 1.0}) == (4.0, [])
    for name in ("a", "b", "c", "d", "e"):
        recent.add({name: judgement(name)})
    step, others = recent.beside({"f": 1.0, "e": 1.0})
    assert step == 4.0
    assert [other.user for other in others] == ["d", "c"]
    assert recent.beside({str(n): 1.0 for n in range(5)}) == (5.0, [])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.1, 3), max_size=20), st.floats(0, 5))
def test_of_the_latest_judgements_a_full_step_is_kept(weights: list[float], full: float) -> None:
    recent = RecentJudgements(full)
    for number, weight in enumerate(weights):
        recent.add({str(number): judgement("ann", weight)})
    _, others = recent.beside({})
    kept = [other.weight for other in others]
    assert kept == weights[::-1][: len(kept)]
    assert math.fsum(kept[:-1]) < full or not kept
