"""The gateway's throughput: rates over the last seconds, from its own counters."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import Counter, Gauge

from tuneloop.api.learner import Throughput as ThroughputDocument
from tuneloop.gateway import metrics

WINDOW_SECONDS = 10.0
COMPLETION_ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/responses",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The counters at one moment."""

    time: float
    tokens: float
    requests: float


class Throughput:
    """Tokens and completions a second; null until there are two readings."""

    def __init__(
        self, listeners: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._listeners = listeners
        self._clock = clock
        self._readings: deque[Reading] = deque()

    async def latest(self) -> ThroughputDocument:
        """Return the rates since the oldest reading in the window."""
        now = Reading(
            time=self._clock(),
            tokens=sum_counter(metrics.completion_tokens),
            requests=sum_counter(metrics.http_requests, COMPLETION_ROUTES),
        )
        readings = self._readings
        readings.append(now)
        # One reading older than the window stays: the window starts there.
        while len(readings) > 2 and readings[1].time <= now.time - WINDOW_SECONDS:
            readings.popleft()
        if readings[0].time < now.time - 2 * WINDOW_SECONDS:
            # There was no listener for a while: a mean over that time is not the current rate.
            readings.clear()
            readings.append(now)
        seconds = now.time - readings[0].time
        return {
            "tokens_per_second": per_second(now.tokens - readings[0].tokens, seconds),
            "requests_per_second": per_second(now.requests - readings[0].requests, seconds),
            # Each listener to these figures has a request open, too.
            "in_flight": max(0, int(read_gauge(metrics.in_flight)) - self._listeners()),
        }


def per_second(amount: float, seconds: float) -> float | None:
    return round(amount / seconds, 2) if seconds > 0 else None


def read_gauge(metric: Gauge) -> float:
    return next(sample.value for family in metric.collect() for sample in family.samples)


def sum_counter(counter: Counter, routes: tuple[str, ...] = ()) -> float:
    """Return the sum of a counter over all its labels, or over some routes."""
    return sum(
        sample.value
        for metric in counter.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and (not routes or sample.labels["route"] in routes)
    )
