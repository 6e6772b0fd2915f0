"""What a user's n-th judgement counts: a square root in all, and less while nobody knows them."""

import math

import pytest

from tuneloop.learner.guards.raters import Vote
from tuneloop.learner.guards.settings import GuardSettings
from tuneloop.learner.guards.standing import agreements, bounded_weight, standing_of

SETTINGS = GuardSettings(judgements_in_full=64, probation=8, probation_weight=0.25)


def test_all_judgements_of_a_user_grow_like_a_square_root() -> None:
    for count in (64, 1_024, 16_384):
        total = math.fsum(bounded_weight(n, 64) for n in range(1, count + 1))
        assert total == pytest.approx(2 * math.sqrt(64 * count) - 64, rel=0.01)
    assert [bounded_weight(n, 64) for n in (1, 64, 256)] == [1.0, 1.0, 0.5]


def test_one_on_their_own_machine_is_never_cut() -> None:
    alone = standing_of({"ann": 100_000}, [], SETTINGS)
    assert alone.weight("ann", 100_000) == 1.0
    three = standing_of({"ann": 100_000, "bob": 3, "cat": 1}, [], SETTINGS)
    assert (three.weight("ann", 100_000), three.weight("cat", 1)) == (1.0, 1.0)


def test_where_everybody_says_much_nobody_is_cut() -> None:
    busy = standing_of({f"u{n}": 500 + n for n in range(10)}, [], SETTINGS)
    # The upper median, 505.
    assert busy.weight("u5", 505) == 1.0
    assert busy.weight("u9", 2_020) == 0.5
    quiet = standing_of({"flood": 10_000, **{f"u{n}": 2 for n in range(10)}}, [], SETTINGS)
    assert quiet.weight("flood", 6_400) == pytest.approx(0.1)


def test_newcomers_count_less_where_most_is_said_by_known_users() -> None:
    given = {f"u{n}": 20 for n in range(10)} | {"new": 3}
    standing = standing_of(given, [], SETTINGS)
    assert [standing.weight("new", n) for n in (1, 8)] == [0.25, 0.25]
    assert standing.weight("u1", 3) == 1.0
    assert standing_of(given | {"new": 9}, [], SETTINGS).weight("new", 3) == 1.0


def test_in_the_first_hour_everybody_counts_in_full() -> None:
    first = standing_of({f"u{n}": 3 for n in range(200)}, [], SETTINGS)
    assert first.weight("u1", 1) == 1.0
    # Four known users have given 36 of 226 judgements, 16 %.
    some = standing_of({f"u{n}": 2 for n in range(95)} | dict.fromkeys("abcd", 9), [], SETTINGS)
    assert some.weight("u1", 1) == pytest.approx(1 - 36 / 226)


def test_a_crowd_has_to_say_more_than_all_that_was_said() -> None:
    old = {f"u{n}": 20 for n in range(10)}
    crowd = {f"sock{n}": 2 for n in range(100)}
    assert standing_of(old | crowd, [], SETTINGS).weight("sock1", 1) == 0.5


def test_probation_ends_once_known_users_agree() -> None:
    given = {f"u{n}": 20 for n in range(10)} | {"new": 4, "sock1": 4, "sock2": 4}
    votes = [Vote(topic=f"t{n}", rater=rater, up=True) for n in range(3) for rater in ("u1", "new")]
    votes += [Vote(topic=f"s{n}", rater=f"sock{m}", up=True) for n in range(9) for m in (1, 2)]
    standing = standing_of(given, votes, SETTINGS)
    assert standing.weight("new", 4) == 1.0
    # Two newcomers cannot vouch for each other.
    assert standing.weight("sock1", 4) == 0.25
    assert agreements(votes, {"u1"}) == {"new": 3}
    against = [
        *votes,
        Vote(topic="t9", rater="u2", up=True),
        Vote(topic="t9", rater="new", up=False),
    ]
    assert standing_of(given, against, SETTINGS).weight("new", 4) == 0.25


def test_the_reward_model_can_vouch_where_nobody_else_saw_it() -> None:
    given = {f"u{n}": 20 for n in range(10)} | {"new": 4}
    votes = [Vote(topic=f"t{n}", rater=r, up=True) for n in range(3) for r in ("machine", "new")]
    assert standing_of(given, votes, SETTINGS, ("machine",)).weight("new", 1) == 1.0


def test_each_can_be_switched_off() -> None:
    given = {"flood": 10_000, **{f"u{n}": 20 for n in range(10)}, "new": 1}
    off = GuardSettings(judgements_in_full=0, probation=0)
    standing = standing_of(given, [], off)
    assert (standing.weight("flood", 10_000), standing.weight("new", 1)) == (1.0, 1.0)
