"""Decisions in the ledger: added, never changed, read back as they were."""

from pathlib import Path

from tuneloop.learner.ledger.accounting import decisions
from tuneloop.learner.ledger.database import Database


def test_decisions_of_a_version_come_back_in_order_with_all_their_numbers(tmp_path: Path) -> None:
    database = Database.at(tmp_path / "ledger.db")
    numbers = {"reward": {"difference": -0.25, "low": -0.5, "high": 0.0}, "prompts": 12}
    decisions.record_decision(
        database,
        version=3,
        kind="gate",
        outcome="fail",
        numbers=numbers,
        reason="repeats itself",
        actor="gate",
        now=1000.0,
    )
    decisions.record_decision(
        database, version=3, kind="quarantine", outcome="roll_back", actor="gate", now=1001.0
    )
    decisions.record_decision(
        database, version=4, kind="gate", outcome="pass", actor="gate", now=1002.0
    )
    decisions.record_decision(
        database,
        model="reward_model",
        version=3,
        kind="publish",
        outcome="promote",
        actor="learner",
        now=1003.0,
    )

    first, second = decisions.of_version(database, "policy", 3)

    assert (first.kind, first.outcome, first.actor) == ("gate", "fail", "gate")
    assert first.numbers == numbers
    assert first.reason == "repeats itself"
    assert first.time.timestamp() == 1000.0
    assert (second.kind, second.outcome, second.numbers) == ("quarantine", "roll_back", {})
    assert [d.version for d in decisions.newest(database, "policy", "gate", 5)] == [4, 3]


def test_a_figure_that_is_not_a_number_is_kept_as_unknown(tmp_path: Path) -> None:
    database = Database.at(tmp_path / "ledger.db")
    decisions.record_decision(
        database,
        version=1,
        kind="gate",
        outcome="fail",
        numbers={"kl": float("nan"), "lengths": [1.0, float("inf")]},
        actor="gate",
        now=0.0,
    )

    (found,) = decisions.of_version(database, "policy", 1)

    assert found.numbers == {"kl": None, "lengths": [1.0, None]}
