"""Log lines for people and for programs; traces that cost nothing while they are off."""

import json
import logging
import sys
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.observe_flow import spans

from tuneloop import host, tracing
from tuneloop.telemetry import JsonFormatter, TextFormatter, setting

__all__ = ["spans"]


def record(message: str, *arguments: object, failed: bool = False) -> logging.LogRecord:
    error = None
    if failed:
        try:
            raise ValueError("no")
        except ValueError:
            error = sys.exc_info()
    return logging.LogRecord("tuneloop.x", logging.WARNING, "x.py", 1, message, arguments, error)


def test_a_line_for_programs_is_one_json_object() -> None:
    line = JsonFormatter("learner").format(record("two\nlines of %d", 7, failed=True))
    assert "\n" not in line
    found = json.loads(line)
    assert found["message"] == "two\nlines of 7"
    assert (found["level"], found["process"], found["logger"]) == (
        "WARNING", "learner", "tuneloop.x",
    )  # fmt: skip
    assert found["exception"].endswith("ValueError: no")
    assert found["time"].endswith("Z")
    assert "trace_id" not in found


def test_lines_inside_a_span_have_its_trace(spans: InMemorySpanExporter) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"
    with tracing.span("work", parent=parent):
        text = TextFormatter().format(record("said", failed=True))
        found = json.loads(JsonFormatter("learner").format(record("said")))
    assert text.splitlines()[0].endswith("said trace_id=0af7651916cd43dd8448eb211c80319c")
    [span] = spans.get_finished_spans()
    assert found["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert found["span_id"] == f"{span.context.span_id:016x}"
    assert TextFormatter().format(record("said")).endswith("said")


def test_values_are_taken_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_LOG_LEVEL", "debug")
    assert setting("TUNELOOP_LOG_LEVEL", "INFO", ("DEBUG", "INFO")) == "DEBUG"


ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "True"}, False),
    ],
    ids=["nothing", "empty", "endpoint", "endpoint of traces", "no exporter", "disabled"],
)
def test_the_standard_variables_turn_traces_on(environment: dict[str, str], expected: bool) -> None:
    assert tracing.is_asked_for(environment) is expected


def test_a_malformed_parent_begins_a_trace_of_its_own(spans: InMemorySpanExporter) -> None:
    with tracing.span("work", parent="nonsense", links=["nonsense"]):
        assert tracing.traceparent().startswith("00-")
    [span] = spans.get_finished_spans()
    assert span.parent is None
    assert span.links == ()


def test_disks_are_watched_before_their_folder_is_there(tmp_path: Path) -> None:
    from prometheus_client import REGISTRY

    host.watch_folder("data", tmp_path / "not" / "yet")
    free = REGISTRY.get_sample_value("tuneloop_disk_free_bytes", {"folder": "data"})
    size = REGISTRY.get_sample_value("tuneloop_disk_size_bytes", {"folder": "data"})
    assert free is not None
    assert size is not None
    assert 0 <= free < size
