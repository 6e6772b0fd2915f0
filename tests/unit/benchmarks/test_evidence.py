"""The benchmark of evidence: who says what, and what it makes of runs; without a model."""

import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import evidence
from benchmarks.evidence import HONEST, OPPOSED, SCENARIOS, Scenario
from benchmarks.quality_live import USERS


def figures(scenario: Scenario, *, taste: list[int], liked: list[bool]) -> dict[str, Any]:
    return asdict(scenario) | {"thumbs": scenario.thumbs, "taste": taste, "liked": liked}


def test_a_fifth_of_the_users_say_the_opposite() -> None:
    said = [evidence.says(OPPOSED, True, user, random.Random(0)) for user in range(USERS)]
    assert said.count(False) == USERS // 5
    assert [not up for up in said] == [
        evidence.says(OPPOSED, False, user, random.Random(0)) for user in range(USERS)
    ]
    assert all(evidence.says(HONEST, True, user, random.Random(0)) for user in range(USERS))


def test_some_say_one_thing_whatever_they_read_and_some_flip_a_coin() -> None:
    by_name = {scenario.name: scenario for scenario in SCENARIOS}
    chance = random.Random(0)
    for liked in (False, True):
        assert evidence.says(by_name["only up"], liked, 0, chance)
        assert not evidence.says(by_name["only down"], liked, 0, chance)
    flips = [evidence.says(by_name["coin flips, busy"], True, 0, chance) for _ in range(400)]
    assert 160 < sum(flips) < 240


def test_there_are_as_many_honest_thumbs_with_adversaries_as_without() -> None:
    assert OPPOSED.thumbs * (1 - OPPOSED.adversaries) == HONEST.thumbs


def test_each_seed_has_a_name_of_its_own() -> None:
    named = evidence.with_seeds([HONEST, OPPOSED], 2)
    assert [scenario.name for scenario in named] == [
        "taste, busy",
        "taste, busy, seed 1",
        "taste, 20 % adversaries",
        "taste, 20 % adversaries, seed 1",
    ]
    assert [scenario.seed for scenario in named] == [0, 1, 0, 1]
    assert len({evidence.folder_of(scenario.name) for scenario in named}) == 4


def test_shares_are_of_equal_parts() -> None:
    """By hand: two of four, then three of four; a ninth answer is in no part."""
    liked = [True, False, True, False, True, True, True, False, True]
    assert evidence.shares_liked(liked, 2) == [0.5, 0.75]
    assert evidence.shares_liked([], 4) == []


def test_what_adversaries_cost_is_compared_seed_by_seed() -> None:
    """By hand: −0.25 and −0.75, mean −0.5, error 0.25; t of 0.975 with one degree is 12.706."""
    honest = [
        figures(replace(HONEST, seed=s), taste=[1, 1, 1, 1], liked=[False, True]) for s in (0, 1)
    ]
    opposed = [
        figures(replace(OPPOSED, seed=0), taste=[1, 1, 1, 0], liked=[True, True]),
        figures(replace(OPPOSED, seed=1), taste=[1, 0, 0, 0], liked=[True, True]),
    ]
    # Neither the run halfway nor the commit before is compared.
    others = [honest[0] | {"thumbs": 256, "taste": [0]}, honest[0] | {"before": True, "taste": [0]}]
    text = evidence.cost_of_adversaries([*honest, *others, *opposed])
    assert text.splitlines() == [
        "",
        "Taste with adversaries minus without, the last version on fresh questions, 2 seeds: "
        "-0.500 (-3.677 to +2.677)",
        "",
        "Taste with adversaries minus without, what users got, last half, 2 seeds: "
        "+0.000 (+0.000 to +0.000)",
    ]
    assert evidence.cost_of_adversaries([honest[0], opposed[0]]) == ""


def test_a_finished_run_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "BUILD", tmp_path)
    monkeypatch.setattr(evidence, "call", lambda *_, **__: pytest.fail("it ran"))
    folder = evidence.folder_of(HONEST.name)
    folder.mkdir()
    measured = [{"thumbs": 256, "kl": 0.2}, {"thumbs": 384, "kl": 0.5}]
    (folder / "figures.json").write_text(json.dumps(measured))
    assert [found["kl"] for found in evidence.run(HONEST, None)] == [0.2, 0.5]
    before = next(scenario for scenario in SCENARIOS if scenario.before)
    assert evidence.run(before, None) == [], "there is no checkout of the commit before"
