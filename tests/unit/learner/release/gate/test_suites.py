"""Suites: comparisons worked out by hand, what fails a candidate, and what is kept."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from tuneloop.learner.release.gate import suites
from tuneloop.learner.release.gate.answers import GateMeasurements
from tuneloop.learner.release.gate.settings import GateSettings
from tuneloop.learner.release.gate.suites import KeptScores, compare_suites, items_of_decision
from tuneloop.learner.release.gate.verdict import judge
from tuneloop.learner.stats.paired import spent_alpha, t_quantile

BASE = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
"""Mean 2.5, standard deviation sqrt(5/3) = 1.2910."""
STABLE = {"a": 1.1, "b": 2.1, "c": 3.1, "d": 4.1}
CANDIDATE = {"a": 0.8, "b": 1.9, "c": 2.8, "d": 3.9}
"""Minus stable: -0.3, -0.2, -0.3, -0.2; mean -0.25, standard error 0.057735/2 = 0.028868."""


def compared(candidate: dict[str, float], number: int = 1) -> suites.SuiteComparison:
    (found,) = compare_suites(
        {"s": candidate}, {"s": STABLE}, {"s": BASE}, number=number, settings=GateSettings()
    )
    return found


def test_all_that_is_spent_is_the_whole() -> None:
    assert spent_alpha(0.05, 1) == pytest.approx(0.05 * 6 / math.pi**2)
    assert spent_alpha(0.05, 3) == pytest.approx(spent_alpha(0.05, 1) / 9)
    # What is left after n parts is about 0.05 · 6 / (π² · n).
    spent = math.fsum(spent_alpha(0.05, number) for number in range(1, 10_001))
    assert spent == pytest.approx(0.05, rel=1e-4)


def test_a_candidate_is_compared_with_the_stable_version_and_with_version_0() -> None:
    found = compared(CANDIDATE, number=2)
    assert (found.items, found.mean) == (4, pytest.approx(2.35))
    assert found.spread == pytest.approx(math.sqrt(5 / 3))
    assert found.stable is not None
    assert found.anchor is not None
    assert found.stable.difference == pytest.approx(-0.25)
    assert found.stable.high == pytest.approx(-0.25 + t_quantile(0.975, 3) * 1 / math.sqrt(1200))
    assert found.anchor.difference == pytest.approx(-0.15)
    confidence = 1 - 0.05 * 6 / math.pi**2 / 4
    assert found.anchor.confidence == pytest.approx(confidence)
    margin = t_quantile((1 + confidence) / 2, 3) * 1 / math.sqrt(1200)
    assert found.anchor.high == pytest.approx(-0.15 + margin)


def test_several_suites_share_the_chance_of_error() -> None:
    scores = {"one": CANDIDATE, "two": CANDIDATE}
    found = compare_suites(scores, scores, scores, number=1, settings=GateSettings())
    assert [c.stable.confidence for c in found if c.stable] == pytest.approx([0.975, 0.975])


def test_only_items_that_both_have_are_compared() -> None:
    (found,) = compare_suites(
        {"s": {**CANDIDATE, "new": 9.0}, "own": {"x": 1.0}},
        {"s": {"a": 1.0, "z": 2.0}},
        {"s": BASE},
        number=1,
        settings=GateSettings(),
    )[:1]
    assert (found.items, found.stable) == (5, None)
    assert found.anchor is not None
    assert found.anchor.pairs == 4


def examined(*found: suites.SuiteComparison) -> GateMeasurements:
    return GateMeasurements(change=0.1, change_norm=1.0, stable_version=3, suites=found)


def test_a_candidate_fails_when_the_whole_interval_lies_below_what_is_borne() -> None:
    verdict = judge(examined(compared(CANDIDATE)), GateSettings())
    assert not verdict.passed
    # The margin is 0.03 · 1.2910; that against version 0 is 0.129, and bears it.
    assert verdict.reason == (
        "s fell by 0.25 from version 3, the stable one "
        "(95% interval -0.342 to -0.158, over 4 items; 0.0387 is borne)"
    )
    json.dumps(dict(verdict.numbers))
    assert judge(examined(compared(CANDIDATE)), GateSettings(suite_margin=0.2)).passed
    better = judge(examined(compared(STABLE)), GateSettings())
    assert better.passed
    assert "s +0.1 against version 0 (96.96% interval 0.1 to 0.1)" in better.reason


def test_losses_that_add_up_fail_against_version_0() -> None:
    # 0.02 and a little less than the stable version, and 0.4 less than version 0.
    low = {item: value - 0.4 - 0.001 * (item < "c") for item, value in BASE.items()}
    stable = {item: value - 0.39 for item, value in BASE.items()}
    (found,) = compare_suites(
        {"s": low}, {"s": stable}, {"s": BASE}, number=20, settings=GateSettings()
    )
    verdict = judge(examined(found), GateSettings())
    assert not verdict.passed
    assert "from version 0" in verdict.reason
    assert "the stable one" not in verdict.reason


def test_a_value_that_is_no_number_fails() -> None:
    assert not judge(examined(compared({**CANDIDATE, "a": math.nan})), GateSettings()).passed


def test_a_decision_keeps_the_values_of_each_item(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = items_of_decision({"s": CANDIDATE}, {"s": {"a": 1.23456}}, {"s": BASE})
    assert kept["s"] == {
        "item": ["a", "b", "c", "d"],
        "candidate": [0.8, 1.9, 2.8, 3.9],
        "stable": [1.2346, None, None, None],
        "anchor": [1.0, 2.0, 3.0, 4.0],
        "left_out": 0,
    }
    monkeypatch.setattr(suites, "ITEMS_IN_DECISION", 2)
    few = items_of_decision({"s": CANDIDATE}, {}, {"s": BASE})["s"]
    assert (set(few["item"]), few["left_out"]) == ({"a", "c"}, 2)


def test_scores_of_the_newest_versions_and_of_version_0_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suites, "KEPT", 2)
    kept = KeptScores(tmp_path / "suites")
    assert kept.of_version(0) is None
    for version in range(5):
        kept.save(version, {"s": {"a": float(version)}})
    found = [kept.of_version(version) for version in range(5)]
    assert found == [{"s": {"a": 0.0}}, None, None, {"s": {"a": 3.0}}, {"s": {"a": 4.0}}]


def test_files_of_versions_before_the_kl_was_measured_are_read(tmp_path: Path) -> None:
    kept = KeptScores(tmp_path)
    (tmp_path / "00000003.json").write_text('{"format": {"a": 1.0}, "s": {"b": 2.0}}')
    assert kept.of_version(3) == {"format": {"a": 1.0}, "s": {"b": 2.0}}
    assert kept.kl_of_version(3) is None
    kept.save(4, {"format": {"a": 1.0}}, 0.5)
    assert (kept.of_version(4), kept.kl_of_version(4)) == ({"format": {"a": 1.0}}, 0.5)


def test_nothing_is_said_of_weights_alone() -> None:
    assert judge(examined(), GateSettings()).passed
    assert not judge(replace(examined(), change=math.nan), GateSettings()).passed
