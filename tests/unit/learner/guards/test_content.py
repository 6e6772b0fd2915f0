"""What answers are like tells which judgements to expect; nobody's own word is asked."""

import math
import random

import numpy as np
import pytest

from tuneloop.learner.guards.content import JudgedAnswers, fit, predictability
from tuneloop.learner.guards.raters import Vote, predictabilities, reliabilities


def answers(count: int, *, seed: int = 0) -> list[tuple[float, float, float]]:
    """Features of answers, of which people like those whose first number is above 0."""
    chance = random.Random(seed)
    return [(chance.gauss(0, 1), chance.gauss(0, 1), chance.gauss(0, 1)) for _ in range(count)]


def votes_of_a_crowd(count: int, *, adversaries: int = 0, coin: bool = False) -> list[Vote]:
    """Each answer is judged by one of twenty users."""
    chance = random.Random(1)
    votes = []
    for number, features in enumerate(answers(count)):
        rater = chance.randrange(20)
        up = chance.random() < 0.5 if coin else (features[0] > 0) != (rater < adversaries)
        votes.append(Vote(topic=f"t{number}", rater=f"u{rater}", up=up, features=features))
    return votes


def test_a_regression_of_two_points_is_that_of_the_book() -> None:
    """At ±1, truths 1 and 0: 2(1 − σ(w)) = λw; of w = ln 3 both sides are 1/2."""
    columns, truths = np.array([[1.0], [-1.0]]), np.array([1.0, 0.0])
    penalty = np.array([0.5 / math.log(3)])
    assert fit(columns, truths, np.ones(2), penalty) == pytest.approx([math.log(3)], abs=1e-3)
    twice = fit(columns, truths, np.array([2.0, 2.0]), 2 * penalty)
    assert twice == pytest.approx([math.log(3)], abs=1e-3)


def test_predictability_is_the_area_less_its_error() -> None:
    """Eight of each, all in order: 1 − √(17 / (12 · 8 · 8)) = 0.8512; twice that, less 1."""
    said = np.array([True] * 8 + [False] * 8)
    in_order = np.arange(16, 0, -1, dtype=np.float64)
    assert predictability(in_order, said, np.ones(16)) == pytest.approx(0.70244, abs=1e-5)
    assert predictability(-in_order, said, np.ones(16)) == 0.0
    assert predictability(np.zeros(16), said, np.ones(16)) == 0.0
    muted = np.where(np.arange(16) == 0, 0.5, 1.0)
    assert predictability(in_order, said, muted) is None


def test_what_is_expected_of_a_judgement_does_not_depend_on_what_its_user_says() -> None:
    features, raters = answers(64), [f"u{n % 16}" for n in range(64)]
    judged = JudgedAnswers.of(features, raters, has_base_rate=True)
    truths = np.array([float(f[0] > 0) for f in features])
    mine = np.array([rater == "u3" for rater in raters])
    before, after = (judged.expected(np.where(mine, said, truths)) for said in (0.0, 1.0))
    assert after[mine] == pytest.approx(before[mine])
    assert not np.allclose(after, before)


def test_users_who_say_the_opposite_are_known_though_nobody_judges_what_they_judged() -> None:
    found = reliabilities(votes_of_a_crowd(300, adversaries=4))
    assert max(found[f"u{rater}"].weight for rater in range(4)) < 0.1
    assert min(found[f"u{rater}"].weight for rater in range(4, 20)) > 0.9


def test_without_features_nobody_who_judges_alone_is_judged() -> None:
    alone = [
        Vote(topic=vote.topic, rater=vote.rater, up=vote.up)
        for vote in votes_of_a_crowd(300, adversaries=4)
    ]
    assert reliabilities(alone) == {}
    assert predictabilities(alone, {}) == {}


@pytest.mark.parametrize("users", [1, 20])
def test_a_taste_is_predictable_and_coin_flips_are_not(users: int) -> None:
    def found(coin: bool) -> float:
        votes = [
            Vote(topic=v.topic, rater=f"u{n % users}", up=v.up, features=v.features)
            for n, v in enumerate(votes_of_a_crowd(64, coin=coin))
        ]
        known = predictabilities(votes, reliabilities(votes))["thumb"]
        assert known is not None
        return known

    assert found(coin=False) > 0.7
    assert found(coin=True) < 0.2


def test_pairs_are_predictable_whichever_answer_is_named_first() -> None:
    chance = random.Random(2)
    votes = []
    for number, (a, b) in enumerate(zip(answers(64), answers(64, seed=5), strict=True)):
        difference = tuple(x - y for x, y in zip(a, b, strict=True))
        vote = Vote(
            topic=f"p{number}",
            rater=f"u{chance.randrange(9)}",
            up=difference[0] > 0,
            family="pair",
            features=difference,
        )
        votes.append(vote)
    assert (predictabilities(votes, {})["pair"] or 0.0) > 0.7


def test_few_of_one_kind_say_nothing() -> None:
    votes = [vote for vote in votes_of_a_crowd(64) if not vote.up]
    assert predictabilities(votes, {}) == {"thumb": None}
