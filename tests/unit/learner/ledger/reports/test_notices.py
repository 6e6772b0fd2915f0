"""What webhooks tell: in the order in which it happened, each thing once."""

from pathlib import Path
from typing import Any

import pytest
from support.learner_parts import Clock

from tuneloop.learner.guards.alarms import Alarm
from tuneloop.learner.ledger.accounting import decisions
from tuneloop.learner.ledger.accounting.promotions import (
    QuarantineRange,
    record_promotion,
)
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.reports import notices
from tuneloop.learner.ledger.reports.alarms import record_alarms
from tuneloop.learner.ledger.reports.notices import Notice, Position


@pytest.fixture
def ledger(tmp_path: Path) -> Database:
    return Database.at(tmp_path / "ledger.db")


def promote(ledger: Database, version: int, now: float, **options: Any) -> None:
    given = {"model": "policy", "previous": version - 1, "action": "promote", "actor": "ann"}
    record_promotion(ledger, version=version, now=now, **given | options)


def all_after(ledger: Database, position: Position) -> list[Notice]:
    found = []
    while (notice := notices.next_notice(ledger, "tuneloop", position)) is not None:
        found.append(notice)
        position = notice.after
    return found


def test_versions_and_alarms_are_told_in_the_order_of_their_times(ledger: Database) -> None:
    start = Clock().now
    kl = Alarm(name="kl", numbers={"kl": 0.4, "limit": 0.3})
    promote(ledger, 1, start, action="publish", actor="learner")
    record_alarms(ledger, [kl], start + 1)
    promote(ledger, 2, start + 2)
    record_alarms(ledger, [], start + 3)
    told = all_after(ledger, Position())
    assert [(notice.event["type"], notice.time - start) for notice in told] == [
        ("version.promoted", 0),
        ("alarm.raised", 1),
        ("version.promoted", 2),
        ("alarm.resolved", 3),
    ]
    assert told[0].event == {
        "type": "version.promoted",
        "timestamp": "2027-01-15T08:00:00+00:00",
        "data": {
            "policy": "tuneloop",
            "policy_version": 1,
            "previous_version": 0,
            "reason": "serves instead of version 0",
            "decided_by": "learner",
        },
    }
    assert told[3].event == {
        "type": "alarm.resolved",
        "timestamp": "2027-01-15T08:00:03+00:00",
        "data": {
            "policy": "tuneloop",
            "alarm": "kl",
            "raised_time": "2027-01-15T08:00:01+00:00",
            "numbers": {"kl": 0.4, "limit": 0.3},
        },
    }
    assert len({notice.id for notice in told}) == 4
    assert all("." not in notice.id for notice in told)
    assert all_after(ledger, told[1].after) == told[2:]


def test_the_end_of_an_alarm_is_told_to_who_was_told_of_it(ledger: Database) -> None:
    kl, length = (Alarm(name=name, numbers={}) for name in ("kl", "length"))
    record_alarms(ledger, [kl], 1.0)
    later = notices.newest_position(ledger)
    record_alarms(ledger, [length], 2.0)
    record_alarms(ledger, [kl], 3.0)
    told = [(n.event["type"], n.event["data"]["alarm"]) for n in all_after(ledger, later)]
    assert told == [
        ("alarm.raised", "length"),
        ("alarm.raised", "kl"),
        ("alarm.resolved", "length"),
    ]


def test_a_roll_back_is_told_with_what_it_quarantined(ledger: Database) -> None:
    promote(
        ledger,
        1,
        5.0,
        previous=3,
        action="roll back",
        quarantined=QuarantineRange(
            first=2, last=3, reason="too long", numbers={}, actor="ann", kind="quarantine"
        ),
    )
    rolled_back, quarantined = all_after(ledger, Position())
    assert rolled_back.event["type"] == "version.rolled_back"
    assert rolled_back.event["data"]["policy_version"] == 1
    assert rolled_back.event["data"]["previous_version"] == 3
    assert quarantined.event["type"] == "version.quarantined"
    assert quarantined.event["data"] == {
        "policy": "tuneloop",
        "policy_version": 3,
        "reason": "too long",
        "decided_by": "ann",
    }


def test_a_promotion_by_the_gate_is_told_with_its_verdict(ledger: Database) -> None:
    verdict = {"kind": "gate", "outcome": "pass", "reason": "no worse", "actor": "gate"}
    decisions.record_decision(ledger, version=1, now=1.0, **verdict)
    promote(ledger, 1, 2.0, actor="gate")
    [notice] = all_after(ledger, Position())
    assert notice.event["data"]["reason"] == "no worse"


def test_reward_models_pauses_and_verdicts_are_not_told(ledger: Database) -> None:
    promote(ledger, 1, 1.0, model="reward_model", action="publish")
    for kind, outcome in (("pause", "paused"), ("gate", "fail"), ("canary", "promote")):
        decisions.record_decision(
            ledger, version=1, kind=kind, outcome=outcome, actor="ann", now=2.0
        )
    assert all_after(ledger, Position()) == []


def test_positions_are_kept_until_their_receiver_is_not_told_any_more(ledger: Database) -> None:
    there = Position(decision=4, alarm=3, raised=(2, 3))
    notices.save_position(ledger, "a", there)
    notices.save_position(ledger, "b", Position())
    assert notices.load_position(ledger, "a") == there
    notices.forget_receivers(ledger, but=["a"])
    assert notices.load_position(ledger, "a") == there
    assert notices.load_position(ledger, "b") is None
