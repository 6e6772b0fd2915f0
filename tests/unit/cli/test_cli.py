"""The command line: quick to start, clear in what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "vllm", "transformers", "fastapi", "uvicorn", "grpc", "nats", "sqlalchemy")
TUNELOOP = str(Path(sys.executable).with_name("tuneloop"))


def tuneloop(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TUNELOOP, *arguments], capture_output=True, text=True, timeout=60, cwd=cwd
    )


@pytest.mark.parametrize("arguments", [["--help"], ["up", "--help"], ["models", "list"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import json, sys; from tuneloop.cli.app import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit: pass\n"
        f"print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize(
    "module",
    [
        "tuneloop.gateway.settings",
        "tuneloop.generation.settings",
        "tuneloop.reward.settings",
        "tuneloop.learner.settings",
        "tuneloop.supervisor.settings",
    ],
)
def test_settings_import_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
