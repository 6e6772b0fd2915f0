"""The command line: quick to start, clear in what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest

TUNELOOP = str(Path(sys.executable).with_name("tuneloop"))


def tuneloop(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TUNELOOP, *arguments], capture_output=True, text=True, timeout=60, cwd=cwd
    )


def test_version() -> None:
    done = tuneloop("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("tuneloop 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "magic"], "--engine 'magic'"),
        (["--model", "./nowhere"], "no such folder"),
        (["--port", "0"], "--port 0: "),
        (["--nats-server", "/nonexistent"], "no program at /nonexistent"),
    ],
)
def test_up_refuses_what_it_cannot_do(
    arguments: list[str], message: str, tmp_path: Path, tiny_policy: Path, tiny_reward_model: Path
) -> None:
    models = ["--model", str(tiny_policy), "--reward-model", str(tiny_reward_model)]
    done = tuneloop("up", "--data-dir", str(tmp_path), *models, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_learners_packages_a_command_says_which() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from tuneloop.cli.app import app\n"
        "app(['train', 'sft', '--model', 'm', '--data', 'd', '--output', 'o'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        'tuneloop: this command needs the package torch: pip install "tuneloop[learner]"\n'
    )
