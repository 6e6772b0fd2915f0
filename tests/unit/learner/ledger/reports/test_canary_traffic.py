"""What was measured during a trial, in the order in which it was."""

from pathlib import Path

from support.learner_events import START, make_metric, make_rollout, make_thumb

from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.reports.canary_traffic import measured, thumbs


def test_a_stream_that_was_made_again_does_not_change_the_order(tmp_path: Path) -> None:
    """Its events are counted from 1 again, and still came later."""
    ledger = Database.at(tmp_path / "ledger.db")
    answers = [make_rollout(f"c{n}", user=f"u{n}", version=1) for n in range(2)]
    recorder.record_rollouts(ledger, answers, 0.0)
    before = [
        (make_thumb("t0", "c0", user="u0", second=1), 500),
        (make_metric("m0", "c0", "seconds", 1.0, user="u0", second=2), 501),
    ]
    after = [
        (make_thumb("t1", "c1", up=False, user="u1", second=3), 1),
        (make_metric("m1", "c1", "seconds", 2.0, user="u1", second=4), 2),
    ]
    recorder.record_feedback(ledger, [*before, *after], 0.0)
    since = START.timestamp()
    assert [one.value for one in thumbs(ledger, [1], since)] == [1.0, 0.0]
    found = measured(ledger, "seconds", canary=1, stable=2, since=since)
    assert [one.value for one in found.answers] == [1.0, 2.0]
    later = measured(ledger, "seconds", canary=2, stable=1, since=since + 60)
    assert list(later.earlier) == [2.0, 1.0]
