"""Logging and traces of a process, as its environment sets them."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("name", "value"),
    [("TUNELOOP_LOG_FORMAT", "xml"), ("TUNELOOP_LOG_LEVEL", "LOUD"), ("TUNELOOP_LOG_QUOTES", "1")],
)
def test_a_setting_that_is_wrong_stops_the_process(name: str, value: str) -> None:
    code = "from tuneloop.telemetry import start_logging; start_logging('gateway')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, name: value}, capture_output=True
    )
    assert done.returncode == 2
    assert f"{name}='{value}': must be" in done.stderr.decode()


ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


def test_traces_asked_for_without_the_packages_are_gone_without() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from tuneloop import telemetry, tracing\n"
        "telemetry.start_logging('gateway')\n"
        "tracing.start('gateway')\n"
        "assert not tracing.is_on()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | ENDPOINT, capture_output=True, check=True
    )
    assert "pip install 'tuneloop[otel]'" in done.stderr.decode()
