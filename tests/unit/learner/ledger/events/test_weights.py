"""One judgement weighs one, however many samples it makes."""

from math import fsum
from pathlib import Path
from typing import Any

import pytest
from support.learner_events import (
    edit_tokens,
    make_comparison,
    make_ranking,
    make_rollout,
    make_thumb,
)

from tuneloop.learner.ledger.accounting import steps
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.queue import agreement, ready

GROUP = tuple("abcdefgh")


@pytest.fixture
def ledger(tmp_path: Path) -> Database:
    """Eight completions of one request."""
    database = Database.at(tmp_path / "ledger.db")
    answers = [make_rollout(name, group_id="g", n=8) for name in GROUP]
    recorder.record_rollouts(database, answers, 0.0)
    return database


def thumbs(ledger: Database, up: str, down: str, *, user: str = "u1", second: int = 0) -> None:
    for name in up + down:
        thumb = make_thumb(f"{user}-{name}-{second}", name, name in up, user=user, second=second)
        recorder.record_feedback(ledger, [(thumb, second)], 0.0)


def take(ledger: Database, objective: str = "dpo") -> list[Any]:
    return ready.take_samples(ledger, objective, 99, edit_tokens=edit_tokens)[0]


def use(ledger: Database, number: int, *sample_ids: str) -> None:
    step = steps.Step(step=number, samples={"dpo": sample_ids}, skipped=False, metrics={})
    steps.commit_steps(ledger, "policy", [step], f"step-{number}", 0.0)


def test_four_up_and_four_down_make_sixteen_pairs_that_weigh_one(ledger: Database) -> None:
    thumbs(ledger, "abcd", "efgh")
    assert [pair.weight for pair in take(ledger)] == [1 / 16] * 16


def test_every_users_pairs_of_a_request_weigh_one(ledger: Database) -> None:
    thumbs(ledger, "ab", "c")
    thumbs(ledger, "a", "h", user="u2", second=1)
    assert [pair.weight for pair in take(ledger)] == [1 / 2, 1 / 2, 1.0]
    # Changes of mind: b and c are disliked, then b alone.
    thumbs(ledger, "", "b", second=2)
    assert sorted(pair.weight for pair in take(ledger)) == [1 / 2, 1 / 2, 1.0]
    thumbs(ledger, "c", "", second=3)
    assert sorted(pair.weight for pair in take(ledger)) == [1 / 2, 1 / 2, 1.0]


def test_pairs_share_what_used_ones_have_left(ledger: Database) -> None:
    thumbs(ledger, "ab", "c")
    first, second = take(ledger)
    use(ledger, 1, first.sample_id)
    assert [pair.weight for pair in take(ledger)] == [1 / 2]
    thumbs(ledger, "", "d", second=1)
    # Half a weight is spent: b over c, a over d and b over d have the rest.
    assert [pair.weight for pair in take(ledger)] == pytest.approx([1 / 6] * 3)
    use(ledger, 2, *(pair.sample_id for pair in take(ledger)))
    thumbs(ledger, "", "e", second=2)
    assert take(ledger) == []
    # After a roll-back all of them share it.
    steps.roll_back(ledger, "policy", 0, 0.0)
    assert [pair.weight for pair in take(ledger)] == [1 / 6] * 6
    assert second.sample_id in {pair.sample_id for pair in take(ledger)}


def test_a_change_of_mind_weighs_one_again(ledger: Database) -> None:
    thumbs(ledger, "a", "b")
    use(ledger, 1, take(ledger)[0].sample_id)
    thumbs(ledger, "b", "a", second=1)
    (pair,) = take(ledger)
    assert pair.weight == 1.0
    assert pair.chosen.completion_token_ids == make_rollout("b").completion_token_ids


@pytest.mark.parametrize("objective", ["dpo", "reward_model"])
def test_the_best_of_four_weighs_one(ledger: Database, objective: str) -> None:
    recorder.record_feedback(ledger, [(make_comparison("best", *"abcd"), 0)], 0.0)
    assert [pair.weight for pair in take(ledger, objective)] == [1 / 3] * 3


def test_a_ranking_weighs_one(ledger: Database) -> None:
    recorder.record_feedback(ledger, [(make_ranking("order", *"abcd"), 0)], 0.0)
    assert [pair.weight for pair in take(ledger)] == [1 / 6] * 6
    assert fsum(order.weight for order in take(ledger, "reward_model")) == 1.0


def test_completions_with_the_same_tokens_are_no_pair(ledger: Database) -> None:
    twins = [make_rollout(n, group_id="t", completion=(7, 8, 2), n=3) for n in ("x", "y")]
    recorder.record_rollouts(ledger, [*twins, make_rollout("z", group_id="t", n=3)], 0.0)
    thumbs(ledger, "x", "yz")
    (pair,) = take(ledger)
    assert pair.weight == 1.0
    assert pair.rejected.completion_token_ids != (7, 8, 2)
    use(ledger, 1, pair.sample_id)
    recorder.record_feedback(ledger, [(make_comparison("same", "x", "y"), 9)], 0.0)
    for objective in ("dpo", "reward_model"):
        taken, refusals = ready.take_samples(ledger, objective, 9)
        assert [s for s in taken if s.sample_id == "same"] == []
        assert [r.reason for r in refusals] == ["the completions have the same tokens"]


def test_a_pair_of_siblings_is_wrong_if_both_thumbs_are(ledger: Database) -> None:
    # Both flipped: 0.2² = 0.04. Neither: 0.8² = 0.64.
    assert agreement.flip_rate_of_siblings(0.2) == pytest.approx(0.04 / 0.68)
    assert agreement.flip_rate_of_siblings(0.0) == 0.0
    assert agreement.flip_rate_of_siblings(0.5) == 0.5
    thumbs(ledger, "abcde", "")
    thumbs(ledger, "", "abcde", user="u2", second=1)
    thumbs(ledger, "f", "a", user="u3", second=2)
    recorder.record_feedback(ledger, [(make_comparison("p", "a", "b", user="u3"), 9)], 0.0)
    with ledger.read() as connection:
        rate = agreement.flip_rate(connection)
    assert rate > 0.05
    rates = {pair.sample_id[:1]: pair.flip_rate for pair in take(ledger)}
    assert rates == {"p": rate, "s": agreement.flip_rate_of_siblings(rate)}
