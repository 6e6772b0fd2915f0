"""Runs that were interrupted end where one that was not does, to the last bit."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.offline_data import rows_for, write_jsonl

from tuneloop.errors import FailedPrecondition, SettingsError
from tuneloop.learner.offline.run.run import Run
from tuneloop.learner.offline.train import TrainOptions, train
from tuneloop.policies import WeightsKind

REWARD = ["support.offline_data:shorter"]
COMMON = [
    *("threads=1", "save_steps=2", "batch_size=4", "max_completion_length=6"),
    # The suite takes longer than the runs.
    "abilities=none",
]
RUNS: dict[str, Sequence[str]] = {
    "sft": ["epochs=2", "lr_scheduler_type=cosine"],
    "kto": ["epochs=3"],
    "sdft": ["epochs=2"],
    "dpo": ["epochs=2"],
    "reward-model": ["epochs=2"],
    "ppo": ["normalize_rewards=true", "kl_target=0.1", "ppo_epochs=2", "samples_per_prompt=2"],
    "grpo": ["samples_per_prompt=4"],
    "rest": ["samples_per_prompt=2", "grow_steps=2", "improve_steps=2"],
}


class Interrupted(BaseException):
    """Stands for the process being killed."""


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all else together."""
    monkeypatch.setattr("tuneloop.learner.offline.run.run.draw", lambda *a, **k: False)


@pytest.fixture
def options(tmp_path: Path, tiny_policy: Path, tiny_reward_model: Path) -> Any:
    def make(algorithm: str, output: str, *more: str, **changes: Any) -> TrainOptions:
        data = write_jsonl(tmp_path / f"{algorithm}.jsonl", rows_for(algorithm))
        sampled = algorithm in ("ppo", "grpo", "rest")
        given: dict[str, Any] = {
            "algorithm": algorithm,
            "model": str(tiny_reward_model if algorithm == "reward-model" else tiny_policy),
            "data": str(data),
            "output": tmp_path / output,
            "assignments": [*COMMON, *RUNS[algorithm], *more],
            "rewards": REWARD if sampled else (),
        }
        return TrainOptions(**{**given, **changes})

    return make


def interrupt_at(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Let each of these steps be lost once, after it was taken and before it was noted."""
    note = Run._note

    def noting(run: Run, *arguments: Any) -> None:
        if run._progress.step in steps:
            steps.remove(run._progress.step)
            raise Interrupted
        note(run, *arguments)

    monkeypatch.setattr(Run, "_note", noting)


LORA, FULL = WeightsKind.LORA, WeightsKind.FULL


FAST = ("dpo", "sdft")
OTHERS = [*((name, LORA) for name in RUNS if name not in FAST), ("kto", FULL), ("ppo", FULL)]
"""Each takes as long as the first again."""


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [
        *((name, LORA) for name in FAST),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS),
    ],
)
def test_two_interruptions_change_nothing(
    algorithm: str, kind: WeightsKind, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train(options(algorithm, "straight", kind=kind))
    assert straight is not None
    assert straight["step"] >= 3
    interrupt_at(monkeypatch, {1, straight["step"] - 1})
    for _ in range(2):
        with pytest.raises(Interrupted):
            train(options(algorithm, "broken", kind=kind))
    resumed = train(options(algorithm, "broken", kind=kind))
    assert resumed is not None
    assert resumed["starts"] >= 2
    assert resumed["weights_sha256"] == straight["weights_sha256"]
    for name in ("step", "skipped", "tokens"):
        assert resumed[name] == straight[name]
    assert figures(options(algorithm, "broken").output) == figures(
        options(algorithm, "straight").output
    )


def figures(folder: Path) -> list[dict[str, float]]:
    """All that was measured, but the time it took."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.mark.slow
def test_a_seed_of_its_own_gives_other_weights(options: Any) -> None:
    first = train(options("kto", "first"))
    other = train(options("kto", "other", seed=1))
    assert first is not None
    assert other is not None
    assert first["weights_sha256"] != other["weights_sha256"]


@pytest.mark.slow
def test_damaged_foreign_and_other_checkpoints_are_passed_over(
    options: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = train(options("kto", "straight"))
    other = train(options("kto", "other", "learning_rate=0.001"))
    assert straight is not None
    assert other is not None
    more = ["save_total_limit=4"]
    interrupt_at(monkeypatch, {7})
    with pytest.raises(Interrupted):
        train(options("kto", "broken", *more))
    folder = options("kto", "broken").output / "checkpoints"
    weights = next((folder / "step-00000006" / "policy").iterdir())
    weights.write_bytes(weights.read_bytes()[:-1])
    (folder / "step-00000007").mkdir()
    (folder / "step-00000007" / "checkpoint.json").write_text('{"format": "another"}')
    last = f"step-{other['step']:08d}"
    (options("kto", "other").output / "checkpoints" / last).rename(folder / "step-00000008")
    capsys.readouterr()
    resumed = train(options("kto", "broken", *more))
    said = capsys.readouterr().err
    assert "step-00000008: of another run, or of other settings; taking the one before" in said
    assert "step-00000007: checkpoint.json does not parse" in said
    assert f"step-00000006: policy: {weights.name} has" in said
    assert "going on after step 4" in said
    assert resumed is not None
    assert resumed["weights_sha256"] == straight["weights_sha256"]


def test_checkpoints_are_kept_to_a_number(options: Any) -> None:
    train(options("kto", "run", "save_total_limit=3"))
    kept = sorted((options("kto", "run").output / "checkpoints").glob("step-*"))
    assert [path.name for path in kept] == [f"step-0000000{n}" for n in (6, 8, 9)]


@pytest.mark.slow
def test_other_settings_are_refused_with_what_differs(options: Any) -> None:
    train(options("kto", "run"))
    with pytest.raises(FailedPrecondition) as caught:
        train(options("kto", "run", "learning_rate=0.5", seed=3))
    assert "learning_rate was None, is 0.5; seed was 0, is 3" in caught.value.message
    assert "--restart" in caught.value.message
    summary = train(options("kto", "run", "learning_rate=0.5", seed=3, restart=True))
    assert summary is not None
    assert summary["settings"]["learning_rate"] == 0.5


def test_changed_data_is_refused(options: Any) -> None:
    given = options("kto", "run")
    train(given)
    rows = rows_for("kto")
    rows[0]["label"] = not rows[0]["label"]
    write_jsonl(Path(given.data), rows)
    with pytest.raises(FailedPrecondition, match="data has other content"):
        train(given)


@pytest.mark.slow
def test_what_never_got_to_a_checkpoint_may_begin_otherwise(
    options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(monkeypatch, {1})
    with pytest.raises(Interrupted):
        train(options("kto", "run"))
    summary = train(options("kto", "run", "learning_rate=0.01"))
    assert summary is not None
    assert summary["starts"] == 1
    straight = train(options("kto", "straight", "learning_rate=0.01"))
    assert straight is not None
    assert summary["weights_sha256"] == straight["weights_sha256"]


def test_a_file_is_no_folder_for_a_run(options: Any, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(FailedPrecondition, match="a file, not a folder"):
        train(options("kto", "run"))


def test_a_finished_run_is_not_run_again(options: Any, capsys: pytest.CaptureFixture[str]) -> None:
    given = options("kto", "run")
    summary = train(given)
    written = (given.output / "model.safetensors").stat().st_mtime_ns
    assert "is over" not in capsys.readouterr().err
    assert train(given) == summary
    assert "this run is over" in capsys.readouterr().err
    assert (given.output / "model.safetensors").stat().st_mtime_ns == written


def test_harmless_settings_may_change(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(monkeypatch, {5})
    with pytest.raises(Interrupted):
        train(options("kto", "run"))
    assert train(options("kto", "run", "logging_steps=1")) is not None


def test_a_folder_with_something_else_is_left_alone(options: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    for restart in (False, True):
        with pytest.raises(FailedPrecondition, match="holds no run"):
            train(options("kto", "run", restart=restart))
    assert (tmp_path / "run" / "thesis.txt").exists()


@pytest.mark.slow
def test_restart_leaves_files_that_no_run_wrote(options: Any, tmp_path: Path) -> None:
    train(options("kto", "run"))
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert train(options("kto", "run", restart=True)) is not None
    assert (tmp_path / "run" / "notes.txt").exists()


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("learning_rat=1", "did you mean learning_rate?"),
        ("learning_rate", "write key=value"),
        ("learning_rate=fast", "valid number"),
        ("batch_size=0", "batch_size must be 1 or more"),
        ("seed=3", "--seed"),
        ("kind=full", "--lora or --full"),
        ("on_long=cut", "'error' or 'drop'"),
    ],
)
def test_wrong_settings_are_told(assignment: str, message: str, options: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        train(options("kto", "run", assignments=[assignment]))
    assert message in caught.value.message
