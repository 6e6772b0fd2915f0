"""Metrics of gRPC servers."""

from prometheus_client import Counter, Histogram

from tuneloop.telemetry import LATENCY_BUCKETS

requests = Counter("tuneloop_rpc_requests_total", "Calls that ended.", ["method", "code"])
seconds = Histogram(
    "tuneloop_rpc_seconds", "Time from the start of a call to its end.", ["method"],
    buckets=LATENCY_BUCKETS,
)  # fmt: skip
