"""Alarms: when they are raised, told and ended."""

from pathlib import Path

import pytest
from support.learner_events import make_rollout, make_score, make_thumb
from support.learner_parts import Parts

from tuneloop.learner import metrics
from tuneloop.learner.guards.alarms import (
    NAMES,
    Figures,
    Seen,
    alarms,
)
from tuneloop.learner.guards.settings import GuardSettings
from tuneloop.learner.ledger.events import recorder
from tuneloop.learner.ledger.reports import alarm_figures, traffic
from tuneloop.learner.monitoring.alarm_monitor import AlarmMonitor, show_answers
from tuneloop.learner.stats.intervals import Sums


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(folder=tmp_path, options={"batch_size": 8, "guards": GuardSettings()})


GOOD, BAD = Sums.of([1.0] * 70 + [0.0] * 30), Sums.of([1.0] * 30 + [0.0] * 70)
HIGH, LOW = Sums.of([2.0, 3.0] * 50), Sums.of([0.0, 1.0] * 50)
SHORT, LONG = Sums.of([9.0, 11.0] * 50), Sums.of([40.0, 50.0] * 50)
ONCE, AGAIN = Sums.of([0.0, 0.1] * 50), Sums.of([0.5, 0.6] * 50)


@pytest.mark.parametrize(
    ("seen", "names"),
    [
        pytest.param(Seen(newest=Figures(), before=Figures()), [], id="nothing"),
        pytest.param(
            Seen(newest=Figures(thumbs=BAD, reward=HIGH), before=Figures(thumbs=GOOD, reward=LOW)),
            ["reward_hacking"],
            id="reward-up-thumbs-down",
        ),
        pytest.param(
            Seen(newest=Figures(thumbs=GOOD, reward=HIGH), before=Figures(thumbs=BAD, reward=LOW)),
            [],
            id="both-up",
        ),
        pytest.param(
            Seen(
                newest=Figures(thumbs=Sums.of([0.0] * 9), reward=HIGH),
                before=Figures(thumbs=GOOD, reward=LOW),
            ),
            [],
            id="too-few-thumbs",
        ),
        pytest.param(
            Seen(newest=Figures(), before=Figures(), thumbs_by_user={"a": 60, "b": 20, "c": 20}),
            ["dominant_user"],
            id="one-of-three-users",
        ),
        pytest.param(
            Seen(newest=Figures(), before=Figures(), thumbs_by_user={"a": 90, "b": 10}),
            [],
            id="one-of-two-users",
        ),
        pytest.param(Seen(newest=Figures(), before=Figures(), kl=2.5), ["kl"], id="kl"),
        pytest.param(
            Seen(newest=Figures(), before=Figures(), logprob_gap=0.11),
            ["logprob_gap"],
            id="logprob-gap",
        ),
        pytest.param(
            Seen(newest=Figures(), before=Figures(), logprob_gap=0.09), [], id="small-logprob-gap"
        ),
        pytest.param(
            Seen(newest=Figures(length=LONG), before=Figures(length=SHORT)), ["length"], id="longer"
        ),
        pytest.param(
            Seen(newest=Figures(length=SHORT), before=Figures(length=LONG)),
            ["length"],
            id="shorter",
        ),
        pytest.param(
            Seen(newest=Figures(repetition=AGAIN), before=Figures(repetition=ONCE)),
            ["repetition"],
            id="repetition",
        ),
        pytest.param(
            Seen(newest=Figures(repetition=ONCE), before=Figures(repetition=AGAIN)),
            [],
            id="less-repetition",
        ),
        pytest.param(
            Seen(
                newest=Figures(length=SHORT, thought_length=LONG, thought_repetition=AGAIN),
                before=Figures(length=SHORT, thought_length=SHORT, thought_repetition=ONCE),
            ),
            ["thought_length", "thought_repetition"],
            id="thoughts-alone",
        ),
    ],
)
def test_alarms(seen: Seen, names: list[str]) -> None:
    found = alarms(seen, GuardSettings())
    assert [alarm.name for alarm in found] == names
    assert set(names) <= set(NAMES)
    assert all(alarm.numbers for alarm in found)


def answered(parts: Parts, version: int, count: int, *, up: int, reward: float) -> None:
    """Answers of a version with thumbs, `up` of ten up, each by a user of its own."""
    names = [f"v{version}-{n}" for n in range(count)]
    rollouts = [make_rollout(c, version=version, completion=range(20)) for c in names]
    recorder.record_rollouts(parts.database, rollouts, 0.0)
    scored = [make_score(c, reward + n % 2) for n, c in enumerate(names)]
    recorder.record_scores(parts.database, scored, 0.0)
    votes = [
        (make_thumb(f"f-{c}", c, n % 10 < up, user=f"u{n}", second=version), n)
        for n, c in enumerate(names)
    ]
    recorder.record_feedback(parts.database, votes, 0.0)


def test_figures_of_the_newest_versions_and_of_those_before(parts: Parts) -> None:
    answered(parts, 0, 40, up=8, reward=0.0)
    answered(parts, 1, 20, up=2, reward=5.0)
    answered(parts, 2, 20, up=2, reward=5.0)
    seen = alarm_figures.seen(parts.database, least=30, window=50)
    assert (seen.newest.thumbs.count, seen.newest.thumbs.mean) == (40, 0.2)
    assert (seen.before.thumbs.count, seen.before.thumbs.mean) == (40, 0.8)
    assert (seen.newest.reward.mean, seen.before.reward.mean) == (5.5, 0.5)
    assert (seen.newest.length.mean, seen.newest.repetition.mean) == (20.0, 0.0)
    assert sum(seen.thumbs_by_user.values()) == 50


def test_thoughts_and_answers_are_told_apart(parts: Parts) -> None:
    """A thought of eight tokens that says 1 2 twice, an answer of four: 2 of 5 4-grams are old."""
    tokens = (1, 2, 1, 2, 1, 2, 1, 2, 5, 6, 7, 8)
    rollouts = [make_rollout(f"c{n}", completion=tokens, thought=8) for n in range(2)]
    recorder.record_rollouts(parts.database, rollouts, 0.0)
    newest = alarm_figures.seen(parts.database, least=30, window=50).newest
    assert (newest.length.mean, newest.repetition.mean) == (4.0, 0.0)
    assert newest.thought_length.mean == 8.0
    assert newest.thought_repetition.mean == pytest.approx(3 / 5)
    of_version = traffic.traffic(parts.database, [0])[0]
    assert (of_version.length.value, of_version.thought_length.value) == (4.0, 8.0)
    show_answers(newest)
    shown = metrics.answer_length.labels("thought"), metrics.answer_repetition.labels("thought")
    assert [gauge._value.get() for gauge in shown] == [8.0, pytest.approx(3 / 5)]


def test_an_alarm_is_told_once_and_outlives_a_restart(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tuneloop.learner.monitoring")
    settings_ = GuardSettings(hold=True)
    watch = AlarmMonitor(parts.database, settings_, clock=parts.clock)
    watch.check_alarms()
    assert (watch.raised, watch.holding) == ((), "")
    answered(parts, 0, 40, up=8, reward=0.0)
    answered(parts, 1, 40, up=2, reward=5.0)
    watch.check_alarms()
    (alarm,) = watch.raised
    assert alarm.name == watch.holding == "reward_hacking"
    assert alarm.numbers["thumbs_rate"] == 0.2
    assert metrics.guard_alarm.labels("reward_hacking")._value.get() == 1
    parts.clock.now += 100
    again = AlarmMonitor(parts.database, GuardSettings(), clock=parts.clock)
    again.check_alarms()
    assert again.raised[0].since == alarm.since
    assert again.holding == ""
    assert caplog.text.count("alarm: reward_hacking") == 1
    answered(parts, 2, 80, up=9, reward=5.0)
    again.check_alarms()
    assert again.raised == ()
    assert caplog.text.count("alarm ended: reward_hacking") == 1
    assert metrics.guard_alarm.labels("reward_hacking")._value.get() == 0
