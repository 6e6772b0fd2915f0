"""How well the reward model ranked answers before it learned their thumbs."""

from pathlib import Path

import pytest
from support.learner_events import make_rollout, make_score, make_thumb

from tuneloop.learner.ledger.accounting import steps
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.queue import agreement


@pytest.fixture
def ledger(tmp_path: Path) -> Database:
    return Database.at(tmp_path / "ledger.db")


def learn(ledger: Database, answers: list[tuple[bool, float]]) -> None:
    """Rollouts with a first score, then a thumb, then one step of the reward model on all."""
    for number, (up, score) in enumerate(answers):
        completion_id = f"c{number}"
        recorder.record_rollouts(ledger, [make_rollout(completion_id)], 100.0)
        recorder.record_scores(ledger, [make_score(completion_id, score)], 100.0)
        thumb = make_thumb(f"f{number}", completion_id, up=up)
        recorder.record_feedback(ledger, [(thumb, number)], 100.0)
    used = [f"f{number}" for number in range(len(answers))]
    done = steps.Step(step=1, samples={"reward_model": used}, skipped=False, metrics={})
    steps.commit_steps(ledger, "reward_model", [done], "step-00000001", 0.0)


def test_pairs_ranked_right_and_ties_as_halves(ledger: Database) -> None:
    disliked = [(False, 0.0)] * 8
    # Against each 0.0: two above (right), one tie (half), five below (wrong).
    liked = [(True, 1.0)] * 2 + [(True, 0.0)] + [(True, -1.0)] * 5
    learn(ledger, disliked + liked)
    assert agreement.ranking_accuracy(ledger) == pytest.approx(2.5 / 8)


def test_the_first_score_counts_not_one_given_after_learning(ledger: Database) -> None:
    learn(ledger, [(False, 1.0)] * 8 + [(True, 0.0)] * 8)
    for number in range(16):
        later = make_score(f"c{number}", -1.0 if number < 8 else 2.0, reward_model_version=2)
        recorder.record_scores(ledger, [later], 100.0)
    assert agreement.ranking_accuracy(ledger) == 0.0


@pytest.mark.parametrize(("up", "down"), [(7, 20), (20, 7), (0, 0)])
def test_too_few_of_either_kind_say_nothing(ledger: Database, up: int, down: int) -> None:
    learn(ledger, [(True, 1.0)] * up + [(False, 0.0)] * down)
    assert agreement.ranking_accuracy(ledger) is None
