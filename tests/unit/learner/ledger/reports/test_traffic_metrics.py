"""Metrics in the traffic of versions: what counts, by hand."""

import math
from pathlib import Path

import pytest
from support.learner_events import make_metric, make_rollout

from tuneloop.feedback import Feedback, FeedbackKind, Retraction
from tuneloop.learner.ledger.accounting import forget_user
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import lifecycle, recorder
from tuneloop.learner.ledger.reports.traffic import METRICS, traffic
from tuneloop.learner.service.convert import traffic_to_proto


@pytest.fixture
def ledger(tmp_path: Path) -> Database:
    found = Database.at(tmp_path / "ledger.db")
    answers = [make_rollout(f"c{n}", user=f"u{n}", version=1) for n in range(4)]
    recorder.record_rollouts(found, [*answers, make_rollout("base")], 0.0)
    return found


def give(ledger: Database, *events: Feedback) -> None:
    recorder.record_feedback(ledger, [(e, n) for n, e in enumerate(events)], 0.0)


def shown(ledger: Database, version: int = 1) -> dict[tuple[str, bool], tuple[int, float]]:
    metrics = traffic(ledger, [version])[version].metrics
    return {(m.name, m.is_boolean): (m.count, m.mean.value) for m in metrics}


def test_the_last_value_of_each_user_on_each_answer_counts(ledger: Database) -> None:
    give(
        ledger,
        make_metric("m0", "c0", "solved", False, user="u0", second=0),
        make_metric("m1", "c0", "solved", True, user="u0", second=1),
        make_metric("m2", "c0", "solved", False, user="other", second=2),
        make_metric("m3", "c1", "solved", True, user="u1", second=3),
        make_metric("m4", "base", "solved", False, second=4),
        make_metric("m5", "unknown", "solved", False, second=5),
    )
    assert shown(ledger) == {("solved", True): (3, pytest.approx(2 / 3))}
    assert shown(ledger, 0) == {("solved", True): (1, 0.0)}


def test_numbers_under_the_name_of_a_boolean_are_another_metric(ledger: Database) -> None:
    give(
        ledger,
        make_metric("m0", "c0", "solved", True, user="u0"),
        make_metric("m1", "c1", "solved", False, user="u1"),
        make_metric("m2", "c0", "solved", 999_999_999.0, user="u0", second=1),
    )
    assert shown(ledger) == {("solved", True): (2, 0.5), ("solved", False): (1, 999_999_999.0)}


def test_numbers_have_a_margin_once_there_are_two(ledger: Database) -> None:
    give(ledger, make_metric("m0", "c0", "seconds", 2.0))
    (one,) = traffic_to_proto(traffic(ledger, [1])[1]).metrics
    assert (one.mean, one.HasField("margin")) == (2.0, False)
    give(ledger, make_metric("m1", "c1", "seconds", 5.0))
    (two,) = traffic_to_proto(traffic(ledger, [1])[1]).metrics
    # Their standard deviation is 3 / √2.
    assert two.margin == pytest.approx(1.96 * 3 / math.sqrt(2) / math.sqrt(2))


def test_what_is_retracted_or_forgotten_does_not_count(ledger: Database) -> None:
    first = make_metric("m0", "c0", "solved", True, user="u0", second=0)
    second = make_metric("m1", "c0", "solved", False, user="u0", second=1)
    give(ledger, first, second, make_metric("m2", "c1", "solved", False, user="u1"))
    taken = Retraction(
        feedback_id="m1",
        kind=FeedbackKind.METRIC,
        policy=second.policy,
        tenant=second.tenant,
        user_hash=second.user_hash,
        retracted_time=second.accepted_time,
    )
    lifecycle.record_retractions(ledger, [(taken, 9)], 0.0)
    assert shown(ledger) == {("solved", True): (2, 0.5)}
    forget_user.forget_user(ledger, "u0", 100.0)
    assert shown(ledger) == {("solved", True): (1, 0.0)}


def test_invented_names_do_not_crowd_out_what_is_measured_of_many(ledger: Database) -> None:
    flood = [make_metric(f"f{n}", "c0", f"a{n:03}", 1.0, user="u0") for n in range(100)]
    real = [make_metric(f"m{n}", f"c{n}", "solved", True, user=f"u{n}") for n in range(2)]
    give(ledger, *flood, *real)
    assert len(shown(ledger)) == METRICS
    assert shown(ledger)["solved", True] == (2, 1.0)
