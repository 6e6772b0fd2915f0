"""Rater weights: who is contradicted counts less, nobody counts against themselves."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneloop.learner.guards.raters import Vote, reliabilities

CROWD = 20


def crowd(adversaries: int, *, colluding: bool = False, seed: int = 0) -> list[Vote]:
    """Three of a crowd judge each of 200 things; honest ones err one time in ten."""
    chance = random.Random(seed)
    votes = []
    for thing in range(200):
        good = chance.random() < 0.6
        raters = chance.sample(range(CROWD), 3)
        if colluding and any(rater < adversaries for rater in raters):
            raters = sorted({*raters, *range(adversaries)})
        for rater in raters:
            honest = rater >= adversaries
            up = good != (chance.random() < 0.1) if honest else not good
            votes.append(Vote(topic=f"t{thing}", rater=f"r{rater}", up=up))
    return votes


def test_adversaries_lose_their_weight_and_others_keep_it() -> None:
    found = reliabilities(crowd(4))
    assert max(found[f"r{rater}"].weight for rater in range(4)) < 0.05
    assert min(found[f"r{rater}"].weight for rater in range(4, CROWD)) > 0.8


def test_a_ring_that_judges_together_is_outvoted_by_what_others_say_elsewhere() -> None:
    found = reliabilities(crowd(4, colluding=True))
    ring = sum(found[f"r{rater}"].weight for rater in range(4)) / 4
    others = sum(found[f"r{rater}"].weight for rater in range(4, CROWD)) / (CROWD - 4)
    assert ring < 0.1
    assert others > 0.9


def test_where_most_would_count_nothing_nobody_is_weighed() -> None:
    """Eight who judge three at a time, and a ring of twelve that says the opposite together."""
    chance = random.Random(0)
    votes = []
    for n in range(200):
        good = chance.random() < 0.6
        for rater in chance.sample(range(8), 3):
            votes.append(Vote(topic=f"t{n}", rater=f"r{rater}", up=good))
        if n < 120:
            votes += [Vote(topic=f"t{n}", rater=f"ring{r}", up=not good) for r in range(12)]
    assert reliabilities(votes) == {}
    smaller = [vote for vote in votes if vote.rater not in {f"ring{n}" for n in range(4, 12)}]
    found = reliabilities(smaller)
    assert max(found[f"ring{n}"].weight for n in range(4)) == 0


def test_accuracies_are_those_of_the_raters() -> None:
    found = reliabilities(crowd(0))
    accuracies = [found[f"r{rater}"].accuracy for rater in range(CROWD)]
    assert sum(accuracies) / CROWD == pytest.approx(0.9, abs=0.06)


def test_what_one_alone_judged_says_nothing() -> None:
    alone = [Vote(topic=f"t{n}", rater=f"r{n % 5}", up=n % 2 == 0) for n in range(50)]
    assert reliabilities(alone) == {}


def test_two_who_disagree_are_not_judged() -> None:
    votes = [Vote(topic=f"t{n}", rater=r, up=r == "a") for n in range(50) for r in "ab"]
    assert reliabilities(votes) == {}
    # Nor is one person by the reward model.
    assert reliabilities(votes, machines=("b",)) == {}


def test_the_reward_model_speaks_where_nobody_else_does() -> None:
    """It is borne out by four who agree with it, and then contradicts a fifth who votes alone."""
    votes = []
    for n in range(120):
        good = n % 3 > 0
        votes.append(Vote(topic=f"t{n}", rater="machine", up=good))
        honest = [f"r{n % 4}", f"r{(n + 1) % 4}"]
        if n < 80:
            votes += [Vote(topic=f"t{n}", rater=rater, up=good) for rater in honest]
        else:
            votes.append(Vote(topic=f"t{n}", rater="liar", up=not good))
    found = reliabilities(votes, machines=("machine",))
    assert found["liar"].weight < 0.1
    assert found["r0"].weight == 1.0


def test_the_last_of_several_votes_counts() -> None:
    votes = crowd(0)
    first_wrong = [Vote(topic=v.topic, rater=v.rater, up=not v.up) for v in votes]
    assert reliabilities(first_wrong + votes) == reliabilities(votes)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.builds(
            Vote,
            topic=st.sampled_from(["a", "b", "c"]),
            rater=st.sampled_from(["r", "s", "t", "u"]),
            up=st.booleans(),
            family=st.just("thumb"),
        ),
        max_size=40,
    )
)
def test_weights_are_from_0_to_1_whatever_is_said(votes: list[Vote]) -> None:
    for found in reliabilities(votes).values():
        assert 0 <= found.weight <= 1
        assert 0 < found.accuracy < 1
