"""The simulated users of the signals benchmark: their world, their lies, what is measured."""

import numpy as np
import pytest
import torch

from benchmarks.signals import HABITS, World, auc, soft_labels


@pytest.fixture(scope="module")
def world() -> World:
    return World(0, 64)


def test_the_hidden_taste_ranks_every_good_answer_above_every_bad_one(world: World) -> None:
    taste = torch.tensor(world.taste)
    assert auc(world, taste) == 1.0
    assert auc(world, -taste) == 0.0
    other = torch.tensor(np.roll(world.taste, 1))
    assert 0.3 < auc(world, other) < 0.7


def test_a_number_of_thumbs_is_reached_with_the_answer_that_gets_the_last(world: World) -> None:
    count = world.until(64)
    assert world.rated[:count].sum() == 64
    assert world.rated[count - 1]


def share_of_copied(world: World, arm: str, *, good: bool, rated: bool) -> float:
    found = world.behaviors(arm, 1500)
    chosen = [
        b for n, b in enumerate(found) if world.good[n] == good and (b.up is not None) == rated
    ]
    return float(np.mean(["copied" in behavior.signals for behavior in chosen]))


@pytest.mark.parametrize(
    ("arm", "with_good", "with_bad"),
    [
        ("signals", *HABITS["copied"]),
        ("a signal means nothing", 0.215, 0.215),
        ("a signal means the opposite", *reversed(HABITS["copied"])),
        ("a signal lies where nobody rates", *reversed(HABITS["copied"])),
    ],
)
def test_users_have_the_habits_of_their_row(
    world: World, arm: str, with_good: float, with_bad: float
) -> None:
    found = [share_of_copied(world, arm, good=good, rated=False) for good in (True, False)]
    assert found == pytest.approx([with_good, with_bad], abs=0.05)


def test_who_lies_where_nobody_rates_is_honest_elsewhere(world: World) -> None:
    arm = "a signal lies where nobody rates"
    honest = share_of_copied(world, arm, good=True, rated=True)
    assert honest == share_of_copied(world, "signals", good=True, rated=True)


def test_signals_weigh_at_most_as_much_as_thumbs(world: World) -> None:
    found = world.behaviors("by their names, one means nothing", 1000)
    indices, chances, weights, _ = soft_labels("by their names, one means nothing", found, 20)
    assert 19 < sum(weights) <= 20
    assert len(indices) == len(chances) == len(weights)
    assert all(found[n].up is None for n in indices)
