"""Render docs/metrics.md from the metrics as they are registered: `python -m docs.render_metrics`.

A process has the metrics of the modules that it imports, which the graph of imports tells. A test
renders the page again and compares.
"""

import importlib
import inspect
import re
import sys
from functools import cache
from pathlib import Path

import grimp
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics import MetricWrapperBase

PAGE = Path(__file__).with_name("metrics.md")
ROOTS = [PAGE.parents[1] / name for name in ("services", "learner", "proto")]
ENTRY_POINTS = {
    "gateway": "tuneloop.gateway.main",
    "generation": "tuneloop.generation.main",
    "reward": "tuneloop.reward.main",
    "learner": "tuneloop.learner.main",
}
ADDRESSES = {
    "gateway": "its own port (8000; in the images 9100): `/metrics`",
    "generation": "port 9101 (`TUNELOOP_GENERATION_METRICS_PORT`)",
    "reward": "port 9102 (`TUNELOOP_REWARD_METRICS_PORT`)",
    "learner": "port 9103 (`TUNELOOP_LEARNER_METRICS_PORT`)",
}
DEFINITION = re.compile(r"^\w+ = (?:Counter|Gauge|Histogram)\(", re.MULTILINE)
UNITS = ("seconds", "bytes", "tokens", "ratio", "rollouts")
INTRODUCTION = """# Metrics

Every process serves its metrics to Prometheus: `deploy/prometheus/prometheus.yaml` scrapes all
four, `deploy/prometheus/alerts.yaml` has the alerts, `deploy/grafana/tuneloop.json` the dashboard.
What is counted since the start ends in `_total`, a histogram has `_bucket`, `_sum` and `_count`. A
metric with labels appears once it has something to say.

Beside these each process has those of the Prometheus client: `process_…` (CPU seconds, memory, open
files) and `python_…` (garbage collection, version). vLLM's own metrics (`vllm:…`) are not among
them, as generation runs vLLM with its statistics off; `tuneloop_time_to_first_token_seconds`,
`tuneloop_inter_token_latency_seconds` and the counts of tokens say what matters most of them.

This page is generated: `python -m docs.render_metrics`.
"""


@cache
def graph() -> grimp.ImportGraph:
    """Who imports whom in this tree, inside functions too."""
    before = list(sys.path)
    # Where another tree is installed it has modules of the same names.
    sys.path[:] = [str(root) for root in ROOTS]
    try:
        return grimp.build_graph("tuneloop", exclude_type_checking_imports=True, cache_dir=None)
    finally:
        sys.path[:] = before


@cache
def metric_modules() -> tuple[str, ...]:
    """Every module that defines metrics."""
    return tuple(
        ".".join(path.relative_to(root).with_suffix("").parts)
        for root in ROOTS
        for path in sorted(root.rglob("*.py"))
        if DEFINITION.search(path.read_text())
    )


def metrics_of(process: str) -> list[MetricWrapperBase]:
    """The metrics of a process by name."""
    reached = graph().find_upstream_modules(ENTRY_POINTS[process])
    modules = [importlib.import_module(name) for name in metric_modules() if name in reached]
    found = {
        metric._name: metric
        for module in modules
        for _, metric in inspect.getmembers(module, lambda o: isinstance(o, MetricWrapperBase))
    }
    return [found[name] for name in sorted(found)]


def exposed_name(metric: MetricWrapperBase) -> str:
    """The name as it is exposed."""
    return f"{metric._name}_total" if metric._type == "counter" else metric._name


def unit_of(name: str) -> str:
    """The unit a name ends in; empty for what is only counted."""
    last = name.removesuffix("_total").rpartition("_")[2]
    return last if last in UNITS else ""


def exposition(process: str) -> bytes:
    """What Prometheus would read of a process, each metric with one set of labels."""
    registry = CollectorRegistry()
    for metric in metrics_of(process):
        if metric._labelnames:
            metric.labels(*("example" for _ in metric._labelnames))
        registry.register(metric)
    return generate_latest(registry)


def table(process: str) -> str:
    """One table."""
    rows = ["| metric | type | labels | unit | meaning |", "| --- | --- | --- | --- | --- |"]
    for metric in metrics_of(process):
        name = exposed_name(metric)
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)
        meaning = metric._documentation.replace("|", "\\|")
        rows.append(f"| `{name}` | {metric._type} | {labels} | {unit_of(name)} | {meaning} |")
    return "\n".join(rows)


def render() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for process, address in ADDRESSES.items():
        parts.append(f"\n## {process.capitalize()}\n\nOn {address}.\n\n{table(process)}\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render())
