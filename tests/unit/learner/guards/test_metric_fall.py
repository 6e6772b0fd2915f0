"""A metric that fell since its anchor: which versions are compared, and what holds."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from support.canary_trial import Trial
from support.learner_events import make_metric, make_rollout

from tuneloop.learner.guards.alarms import fallen_metric
from tuneloop.learner.guards.metric_fall import MetricFall, MetricSums, metric_fall
from tuneloop.learner.guards.settings import GuardSettings
from tuneloop.learner.ledger.accounting import promotions
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.reports.metric_sums import metric_sums, stable_line
from tuneloop.learner.monitoring.alarm_monitor import AlarmMonitor
from tuneloop.learner.release.promotion import Promotion
from tuneloop.learner.stats.intervals import Sums

LINE = [4, 2, 1, 0]
"""Version 3 was quarantined."""


def booleans(true: int, false: int) -> Sums:
    return Sums.of([1.0] * true + [0.0] * false)


def fall(
    sums: dict[int, Sums], *, anchor: int = 0, higher: bool = True, is_boolean: bool = True
) -> MetricFall | None:
    metric = MetricSums(by_version=sums, is_boolean=is_boolean)
    return metric_fall(LINE, metric, anchor=anchor, higher_is_better=higher, least=30)


def raised(sums: dict[int, Sums], *, borne: float = 0.0, higher: bool = True) -> bool:
    return fallen_metric(fall(sums, higher=higher), borne) is not None


def test_a_clear_fall_is_reported_and_a_rise_is_not() -> None:
    good, bad = booleans(160, 40), booleans(80, 120)
    assert raised({0: good, 4: bad})
    assert not raised({0: bad, 4: good})
    assert not raised({0: good, 4: good})
    assert raised({0: bad, 4: good}, higher=False)
    # 0.8 against 0.4, and the interval is 0.15 to either side.
    assert raised({0: good, 4: bad}, borne=0.2)
    assert not raised({0: good, 4: bad}, borne=0.3)


def test_the_newest_versions_are_taken_together_until_they_are_enough() -> None:
    found = fall(
        {0: booleans(200, 0), 4: booleans(10, 10), 2: booleans(200, 56), 1: booleans(0, 9)}
    )
    assert found is not None
    assert (found.versions, found.recent.count, found.recent.total) == (2, 276, 210)
    assert found.worse == pytest.approx(1 - 210 / 276)


def test_versions_that_do_not_lead_to_the_stable_one_do_not_count() -> None:
    assert fall({0: booleans(100, 0), 3: booleans(0, 100)}) is None
    assert fall({3: booleans(100, 0), 4: booleans(0, 100)}, anchor=3) is None
    assert fall({0: booleans(100, 0), 1: booleans(0, 100)}, anchor=1) is None, "nothing is newer"


def test_few_or_equal_values_are_not_certain() -> None:
    assert fall({0: booleans(29, 0), 4: booleans(0, 100)}) is None
    assert not raised({0: booleans(100, 0), 4: booleans(29, 1)})
    equal = fall({0: Sums.of([3.0] * 50), 4: Sums.of([3.0] * 50)}, is_boolean=False)
    assert equal is not None
    assert (equal.worse, equal.margin) == (0.0, 0.0)
    assert fallen_metric(equal, 0.0) is None


def test_an_outlier_cannot_feign_a_fall() -> None:
    """It moves the mean, and the interval as much."""
    spoilt = Sums.of([3.0, 4.0] * 50 + [-999_999_999.0])
    found = fall({0: Sums.of([3.0, 4.0] * 50), 4: spoilt}, is_boolean=False)
    assert found is not None
    assert found.worse > 9e6
    assert fallen_metric(found, 0.0) is None


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(folder=tmp_path)


def measured(
    ledger: Database, version: int, values: list[bool | float], user: str | None = None
) -> None:
    for n, value in enumerate(values):
        name, who = f"{version}-{user}-{n}", user or f"u{n}"
        recorder.record_rollouts(ledger, [make_rollout(name, user=who, version=version)], 0.0)
        event = make_metric(f"m-{name}", name, "solved", value, user=who)
        recorder.record_feedback(ledger, [(event, n)], 0.0)


def make_stable(ledger: Database, version: int) -> None:
    with ledger.write() as connection:
        promotions.set_stable(
            connection,
            "policy",
            version,
            previous=version - 1,
            action="publish",
            actor="x",
            now=0.0,
        )


def test_a_user_weighs_the_root_of_what_was_measured(trial: Trial) -> None:
    measured(trial.database, 0, [True, False])
    measured(trial.database, 0, [True] * 16, user="flood")
    measured(trial.database, 0, [1e8], user="strange")
    found = metric_sums(trial.database, "solved", 0)
    # 1 + 1 + √16 values, of which 1 + 4 are true; the number is another metric.
    assert found.is_boolean
    assert found.by_version == {0: Sums(count=6, total=5.0, squares=5.0)}
    assert metric_sums(trial.database, "other", 0).by_version == {}


@pytest.mark.slow
async def test_promotions_are_held_until_it_recovers(trial: Trial) -> None:
    settings = GuardSettings(metric="solved")
    watch = AlarmMonitor(trial.database, settings, clock=trial.clock)
    release = Promotion(
        policy="tuneloop",
        bus=trial.bus,
        database=trial.database,
        gate="gate",
        alarm=lambda: watch.holding,
    )
    make_stable(trial.database, 1)
    assert stable_line(trial.database) == [1, 0]
    measured(trial.database, 0, [True] * 90 + [False] * 10)
    measured(trial.database, 1, [True] * 30 + [False] * 70)
    watch.check_alarms()
    assert release.hold == "alarm: metric"
    (alarm,) = watch.raised
    assert (alarm.numbers["mean"], alarm.numbers["mean_at_anchor"]) == (0.3, 0.9)
    # Another version serves, and is better.
    make_stable(trial.database, 2)
    measured(trial.database, 2, [True] * 300)
    watch.check_alarms()
    assert (release.hold, watch.raised) == ("", ())
    silent = AlarmMonitor(trial.database, GuardSettings(), clock=trial.clock)
    silent.check_alarms()
    assert silent.holding == ""


def test_a_metric_needs_a_name_that_can_be_one() -> None:
    with pytest.raises(ValidationError, match="no name of a metric"):
        GuardSettings(metric="task solved")
