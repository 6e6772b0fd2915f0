"""Logs and metrics, the same in every process."""

import logging
import os
import sys
import time

from prometheus_client import start_http_server

LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Seconds; wide enough for a GPU's milliseconds and a CPU's minutes."""


def start_logging(process: str) -> logging.Logger:
    """Write log lines of this process to standard error; level from TUNELOOP_LOG_LEVEL."""
    level = os.environ.get("TUNELOOP_LOG_LEVEL", "INFO").upper()
    if level not in logging.getLevelNamesMapping():
        sys.stderr.write(f"TUNELOOP_LOG_LEVEL={level!r}: must be DEBUG, INFO, WARNING or ERROR\n")
        raise SystemExit(2)
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s", "%FT%T")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logger = logging.getLogger("tuneloop")
    logger.setLevel(level)
    return logging.getLogger(f"tuneloop.{process}")


def serve_metrics(host: str, port: int) -> None:
    """Serve this process's metrics at http://host:port/metrics."""
    start_http_server(port, addr=host)
