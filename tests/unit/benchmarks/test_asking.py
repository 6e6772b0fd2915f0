"""The benchmark of choosing what to ask: its heads, its ways to choose, its pools."""

import numpy as np
import pytest

from benchmarks import asking


def test_a_head_is_at_the_minimum_of_its_loss() -> None:
    gram = np.array([[1.0, 0.5], [0.5, 2.0]])
    chosen, counts = np.array([1.0, 0.0]), np.array([[1.0, 1.0], [0.0, 2.0]])
    weights = asking.fit(gram, chosen, counts)
    # The gradient is zero where ridge · weight = count · (chosen − P(choice)).
    p = 1 / (1 + np.exp(-(weights @ gram)))
    assert asking.RIDGE * weights == pytest.approx(counts * (chosen - p), abs=1e-3)
    assert weights[1, 0] == 0
    assert weights[1, 1] < 0 < weights[0, 0]


def test_heads_that_differ_are_told_from_heads_that_are_unsure() -> None:
    chance = np.random.default_rng(0)
    # Two heads on three pairs: sure and at odds, sure and at one, unsure and at one.
    margins = np.array([[np.log(3), 2.0, 0.0], [-np.log(3), 2.0, 0.0]])
    # Probabilities 3/4 and 1/4 have standard deviation 1/4, and mean 1/2.
    assert asking.WAYS["disagreement"](margins, chance) == pytest.approx([0.25, 0, 0])
    gained = np.log(2) - (0.75 * np.log(4 / 3) + 0.25 * np.log(4))
    assert asking.WAYS["bald"](margins, chance) == pytest.approx([gained, 0, 0])
    assert asking.WAYS["margin"](margins, chance) == pytest.approx([0, -2, 0])


def test_no_question_of_the_pool_is_among_the_unseen() -> None:
    of = asking.pairs()
    numbers = {question: i for i, question in enumerate(sorted({p.question for p in of}))}
    given = np.array([[float(numbers[p.question]), p.kind == asking.NOISE] for p in of])
    task = asking.draw_task(of, given, noise_share=0.6, seed=3)
    assert task.pool.shape == (asking.POOL, 2)
    assert task.pool[:, 1].mean() == 0.6
    assert not task.unseen[:, 1].any()
    assert not set(task.pool[:, 0]) & set(task.unseen[:, 0])
    clear = task.chosen[task.pool[:, 1] == 0]
    assert 0.8 < clear.mean() < 1
