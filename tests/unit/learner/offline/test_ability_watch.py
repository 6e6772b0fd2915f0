"""The suite before, during and after a run; a clear drop is warned of, and may end the run."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.offline_data import rows_for, write_jsonl

from tuneloop.errors import InvalidRequest, SettingsError
from tuneloop.learner.abilities.exam import AbilityExam
from tuneloop.learner.abilities.scores import AbilityScores, ItemScore
from tuneloop.learner.offline.train import TrainOptions, train

COMMON = ["threads=1", "batch_size=4", "ability_steps=1"]


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneloop.learner.offline.run.run.draw", lambda *a, **k: False)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    rows = [{"prompt": f"what is {n}?", "choices": ["yes", "no"], "answer": 0} for n in range(8)]
    return write_jsonl(tmp_path / "suite.jsonl", rows)


@pytest.fixture
def run(tmp_path: Path, tiny_policy: Path, suite: Path) -> Any:
    data = write_jsonl(tmp_path / "sft.jsonl", rows_for("sft"))

    def go(output: str, *more: str) -> dict[str, Any]:
        options = TrainOptions(
            algorithm="sft",
            model=str(tiny_policy),
            data=str(data),
            output=tmp_path / output,
            assignments=[*COMMON, *more],
        )
        summary = train(options)
        assert summary is not None
        return summary

    return go


def test_the_suite_is_asked_before_and_after_and_kept(
    run: Any, tmp_path: Path, suite: Path
) -> None:
    summary = run("out", f"abilities={suite}", "max_steps=2")
    assert [row["step"] for row in summary["abilities"]] == [0, 1, 2]
    assert summary["abilities"][0]["change"] is None
    assert summary["abilities"][2]["change"]["value"]["pairs"] == 8
    rows = [json.loads(line) for line in (tmp_path / "out/abilities.jsonl").open()]
    assert all(len(row["scores"]["items"]) == 8 for row in rows)
    figures = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").open()]
    assert all("ability_value" in row and "ability_change" in row for row in figures)


def test_asking_changes_nothing_and_can_be_switched_off(run: Any, suite: Path) -> None:
    asked = run("asked", f"abilities={suite}", "max_steps=2")
    off = run("off", "abilities=none", "max_steps=2")
    assert "abilities" not in off
    assert asked["weights_sha256"] == off["weights_sha256"]


def test_a_drop_ends_the_run_with_the_weights_before_it(
    run: Any, suite: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nats = iter([-0.1, -0.1, -3.0, -3.0] * 2)

    def score(self: AbilityExam, *arguments: Any, **options: Any) -> AbilityScores:
        found = next(nats)
        ids = [item.id for item in self.suite.items]
        return AbilityScores(
            suite_sha256="s",
            items=tuple(
                ItemScore(id=name, kind="facts", nats=found - 0.01 * i)
                for i, name in enumerate(ids)
            ),
        )

    monkeypatch.setattr(AbilityExam, "score", score)
    short = run("short", f"abilities={suite}", "max_steps=1")
    next(nats), next(nats)
    assert run("ruined", f"abilities={suite}")["step"] == 3
    assert "losing abilities" in capsys.readouterr().err
    nats = iter([-0.1, -0.1, -3.0])
    kept = run("kept", f"abilities={suite}", "stop_at_ability_drop=true")
    assert kept["step"] == 2
    assert "the version is of step 1" in capsys.readouterr().err
    assert kept["weights_sha256"] == short["weights_sha256"]


def test_wrong_settings_and_suites_are_refused(run: Any, suite: Path) -> None:
    with pytest.raises(SettingsError, match="stop_at_ability_drop"):
        run("a", "stop_at_ability_drop=true", "abilities=none")
    suite.write_text('{"prompt": "why?"}\n')
    with pytest.raises(InvalidRequest, match="line 1: an item needs"):
        run("b", f"abilities={suite}")
