"""Every metric is named, explained and documented as Prometheus asks."""

import re

import pytest
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from docs import render_metrics

PROCESSES = sorted(render_metrics.ENTRY_POINTS)
NOT_BASE_UNITS = re.compile(
    r"_(ms|millis|milliseconds|us|minutes|hours|days|percent|kb|kib|mb|mib|gb|gib|megabytes)(_|$)"
)
RESERVED = ("_sum", "_count", "_bucket", "_info", "_created")
LABEL = re.compile(r"[a-z][a-z_]*")


def metrics() -> list[MetricWrapperBase]:
    found = {m._name: m for process in PROCESSES for m in render_metrics.metrics_of(process)}
    return list(found.values())


def test_the_page_is_current() -> None:
    assert render_metrics.PAGE.read_text() == render_metrics.render(), (
        "docs/metrics.md is out of date: python -m docs.render_metrics"
    )


def test_every_registered_metric_is_on_the_page() -> None:
    known = {metric._name for metric in metrics()}
    ours = {m.name for m in REGISTRY.collect() if m.name.startswith("tuneloop_")}
    assert ours == known


def test_names_have_the_prefix_base_units_and_a_help_text() -> None:
    for metric in metrics():
        name, text = metric._name, metric._documentation
        assert re.fullmatch(r"tuneloop_[a-z][a-z0-9_]*", name), name
        assert not NOT_BASE_UNITS.search(name), name
        assert not name.endswith((*RESERVED, "_total")), name
        assert len(text) > 10, name
        assert text.endswith("."), name
        assert text[0].isupper() or text[0].isdigit(), name
        for label in metric._labelnames:
            assert LABEL.fullmatch(label), name
            assert label not in ("le", "quantile", "job", "instance"), name


def test_times_are_in_seconds() -> None:
    timed = re.compile(r"\b(seconds|time to|age of)\b", re.IGNORECASE)
    for metric in metrics():
        if metric._type == "histogram" and timed.match(metric._documentation):
            assert metric._name.endswith("_seconds"), metric._name


@pytest.mark.parametrize("process", PROCESSES)
def test_what_a_process_exposes_can_be_parsed(process: str) -> None:
    text = render_metrics.exposition(process).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for metric in render_metrics.metrics_of(process):
        assert families[metric._name].type == metric._type
        assert families[metric._name].documentation == metric._documentation
    names = [sample.name for family in families.values() for sample in family.samples]
    for metric in render_metrics.metrics_of(process):
        assert render_metrics.exposed_name(metric) in names or metric._type == "histogram"


def test_what_alerts_look_for_is_there_before_it_happens() -> None:
    """A counter that appears with its first event shows no increase for it."""

    for name, labels in (
        ("tuneloop_swaps_refused_total", {"by": "check"}),
        ("tuneloop_rollouts_dropped_total", {"reason": "overflow"}),
        ("tuneloop_gateway_feedback_refused_total", {"reason": "unavailable"}),
        ("tuneloop_learner_steps_failed_total", {"model": "policy"}),
    ):
        assert REGISTRY.get_sample_value(name, labels) is not None, name
