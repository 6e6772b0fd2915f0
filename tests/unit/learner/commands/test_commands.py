"""The learner's commands: found without being imported, told when something is missing."""

import os
import re
import signal
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from support.offline_data import rows_for, write_jsonl
from typer.main import get_command
from typer.testing import CliRunner

from tuneloop.cli.app import COMMANDS, app
from tuneloop.learner.offline.run.run import Run
from tuneloop.learner.offline.run.settings import RunSettings

ROOT = Path(__file__).resolve().parents[4]
PAGE = (ROOT / "docs" / "training.md").read_text()


def test_commands_come_from_entry_points() -> None:
    names = {entry.name for entry in entry_points(group=COMMANDS)}
    assert names >= {"train", "evaluate", "export"}
    listed = CliRunner().invoke(app, ["--help"]).output
    assert all(re.search(rf"^\W*{name} ", listed, re.MULTILINE) for name in names)


@pytest.mark.parametrize(
    ("algorithm", "more", "status", "message"),
    [
        ("kto", [], 1, "prompts.jsonl: kto learns from the columns prompt, completion, label"),
        ("ppo", [], 2, "ppo needs a reward"),
        ("sft", ["--reward", "support.offline_data:shorter"], 2, "sft learns from the data alone"),
        ("ppo", ["--reward", "support.offline_data:nothing"], 2, "no such function"),
        ("ppo", ["--reward", "support.offline_data:shorter=much"], 2, "'much' is not a weight"),
        ("ppo", ["--reward", "support.offline_data:shorter", "--set", "clip=2"], 2, "clip must be"),
        (
            "ppo",
            ["--reward", "support.offline_data:shorter", "--set", "device=gpu0"],
            2,
            "device gpu0: ",
        ),
    ],
)
def test_what_is_wrong_is_told_in_a_line(
    algorithm: str,
    more: list[str],
    status: int,
    message: str,
    tmp_path: Path,
    tiny_policy: Path,
) -> None:
    data = write_jsonl(tmp_path / "prompts.jsonl", rows_for("ppo"))
    given = ["--model", str(tiny_policy), "--data", str(data), "--output", str(tmp_path / "run")]
    done = CliRunner().invoke(app, ["train", algorithm, *given, *more])
    assert done.exit_code == status
    assert done.stderr.startswith("tuneloop: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "settings.json").exists()


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on(
    tmp_path: Path,
    tiny_policy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = write_jsonl(tmp_path / "kto.jsonl", rows_for("kto"))
    given = ["--model", str(tiny_policy), "--data", str(data), "--output", str(tmp_path / "run")]
    given += ["--set", "batch_size=3", "--set", "logging_steps=1"]
    take = Run._take

    def stop_after_two(run: Run, step: int, *arguments: Any) -> bool:
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return take(run, step, *arguments)

    monkeypatch.setattr(Run, "_take", stop_after_two)
    done = CliRunner().invoke(app, ["train", "kto", *given])
    assert done.exit_code == 130
    assert "the same command goes on from here" in done.stderr
    assert "stopping after this step" in capfd.readouterr().err
    assert not (tmp_path / "run" / "run.json").exists()
    monkeypatch.setattr(Run, "_take", take)
    done = CliRunner().invoke(app, ["train", "kto", *given])
    assert done.exit_code == 0, done.stderr
    assert "going on after step 2" in done.stderr
    assert "4 steps (0 skipped)" in done.stdout
    for name in ("curves.png", "metrics.jsonl", "run.json"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    events = events_of(tmp_path / "run" / "tensorboard")
    assert sorted(events["kto_loss"]) == [1, 2, 3, 4]


def events_of(folder: Path) -> dict[str, set[int]]:
    """The steps of each figure in TensorBoard's files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    names = accumulator.Tags()["scalars"]
    return {name: {event.step for event in accumulator.Scalars(name)} for name in names}


def test_every_setting_of_a_run_is_in_the_page() -> None:
    for name in RunSettings.__slots__:
        assert f"`{name}`" in PAGE, name


def test_every_option_in_the_page_exists() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    parameters = [
        p for name in ("train", "evaluate", "export", "up") for p in commands[name].params
    ]
    known = {option for p in parameters for option in (*p.opts, *p.secondary_opts)}
    known |= {"--logdir", "--nproc-per-node", "--no-python", "--max-restarts", "--jinja"}  # others'
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) <= known
