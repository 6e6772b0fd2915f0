"""`tuneloop train`, killed twice with SIGKILL, ends on the weights of a run that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.offline_data import rows_for, write_jsonl

from tuneloop.learner.offline.train import TrainOptions, train

TUNELOOP = str(Path(sys.executable).with_name("tuneloop"))
STEPS = 24
REWARD = "support.offline_data:shorter"
SETTINGS = (
    "batch_size=2",
    "epochs=4",
    "save_steps=3",
    "threads=1",
    "logging_steps=1",
    "max_completion_length=8",
    "normalize_rewards=true",
    "kl_target=0.1",
    "ppo_epochs=2",
    "abilities=none",
)


def command(model: Path, data: Path, output: Path) -> list[str]:
    options = ["--model", str(model), "--data", str(data), "--output", str(output)]
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return [TUNELOOP, "train", "ppo", *options, "--reward", REWARD, *settings]


def environment() -> dict[str, str]:
    tests = str(Path(__file__).parents[1])
    return os.environ | {"PYTHONPATH": tests, "OMP_NUM_THREADS": "1"}


def run_until_killed(arguments: list[str], step: int, delay: float) -> int:
    """Kill the run `delay` seconds after it reported `step`; the last step it reported."""
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stderr is not None
    reported = 0
    for line in process.stderr:
        if line.startswith("step "):
            reported = int(line.split()[1].partition("/")[0])
        if reported >= step:
            break
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return reported


@pytest.mark.slow
def test_two_kills_end_on_the_same_weights(tmp_path: Path, tiny_policy: Path) -> None:
    data = write_jsonl(tmp_path / "prompts.jsonl", rows_for("ppo"))
    seed = random.randrange(1000)
    print("kill instants by seed", seed)
    source = random.Random(seed)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    expected = train(
        TrainOptions(
            algorithm="ppo",
            model=str(tiny_policy),
            data=str(data),
            output=straight,
            assignments=SETTINGS,
            rewards=[REWARD],
        )
    )
    assert expected is not None
    arguments = command(tiny_policy, data, killed)
    first = run_until_killed(arguments, source.randint(3, 8), source.uniform(0, 0.1))
    assert first < STEPS
    second = run_until_killed(arguments, source.randint(11, 16), source.uniform(0, 0.1))
    assert second < STEPS
    last = subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment())
    assert "going on after step" in last.stderr
    found = json.loads((killed / "run.json").read_text())
    assert found["step"] == expected["step"] == STEPS
    assert found["weights_sha256"] == expected["weights_sha256"]
    assert (killed / "model.safetensors").read_bytes() == (
        straight / "model.safetensors"
    ).read_bytes()
