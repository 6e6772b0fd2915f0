"""Logs and metrics, the same in every process.

Log lines never quote prompts or completions, unless TUNELOOP_LOG_QUOTES allows it.
"""

import json
import logging
import os
import sys
import time

from prometheus_client import start_http_server

from tuneloop import tracing

LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Seconds, from a GPU's milliseconds to a CPU's minutes."""


class TextFormatter(logging.Formatter):
    """Lines for people; inside a trace they end with its id."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s", "%FT%T")
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without the traceback, which follows."""
        line = super().formatMessage(record)
        trace_id, _ = tracing.ids()
        return f"{line} trace_id={trace_id}" if trace_id else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line, for programs."""

    default_time_format = "%FT%T"
    default_msec_format = "%s.%03dZ"

    def __init__(self, process: str) -> None:
        super().__init__()
        self.converter = time.gmtime
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        trace_id, span_id = tracing.ids()
        fields = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
            "trace_id": trace_id,
            "span_id": span_id,
            "exception": self.formatException(record.exc_info) if record.exc_info else "",
        }
        return json.dumps({name: value for name, value in fields.items() if value})


def start_logging(process: str) -> logging.Logger:
    """Log to standard error, as the TUNELOOP_LOG_… variables say; return the process's logger."""
    level = setting("TUNELOOP_LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR"))
    form = setting("TUNELOOP_LOG_FORMAT", "text", ("text", "json"))
    setting("TUNELOOP_LOG_QUOTES", "no", ("no", "yes"))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logger = logging.getLogger("tuneloop")
    logger.setLevel(level)
    return logging.getLogger(f"tuneloop.{process}")


def setting(name: str, default: str, accepted: tuple[str, ...]) -> str:
    """Read a variable that every process has; exit with status 2 if its value is not accepted."""
    value = os.environ.get(name, default)
    found = next((one for one in accepted if one.lower() == value.lower()), None)
    if found is None:
        sys.stderr.write(
            f"{name}={value!r}: must be {', '.join(accepted[:-1])} or {accepted[-1]}\n"
        )
        raise SystemExit(2)
    return found


def quote(text: str, instead: str) -> str:
    """Return `text` if the log may quote prompts and completions, else `instead`."""
    return text if os.environ.get("TUNELOOP_LOG_QUOTES", "no").lower() == "yes" else instead


def serve_metrics(host: str, port: int) -> None:
    """Serve this process's metrics at http://host:port/metrics."""
    start_http_server(port, addr=host)
