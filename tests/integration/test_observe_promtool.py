"""What promtool says: of each process' metrics, of the alerts and of Prometheus' configuration."""

import shutil
import subprocess
from pathlib import Path

import pytest

from docs import render_metrics

PROMTOOL = shutil.which("promtool")
PROMETHEUS = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROMTOOL is None, reason="needs promtool (Debian: apt install prometheus)"),
]


def promtool(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    assert PROMTOOL is not None
    return subprocess.run(
        [PROMTOOL, *arguments], input=given, capture_output=True, cwd=PROMETHEUS, timeout=60
    )


@pytest.mark.parametrize("process", sorted(render_metrics.ENTRY_POINTS))
def test_metrics_have_nothing_to_complain_of(process: str) -> None:
    done = promtool("check", "metrics", given=render_metrics.exposition(process))
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "alerts.yaml"),
        ("test", "rules", "alerts_test.yaml"),
        ("check", "config", "prometheus.yaml"),
    ],
    ids=["rules", "tests of rules", "configuration"],
)
def test_files_are_right(arguments: tuple[str, ...]) -> None:
    done = promtool(*arguments)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
