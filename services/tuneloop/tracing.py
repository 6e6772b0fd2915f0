"""Traces through all processes, with OpenTelemetry; off unless its standard variables are set.

`OTEL_EXPORTER_OTLP_ENDPOINT` turns them on. While they are off, OpenTelemetry is not imported and a
span costs one comparison. A trace passes between processes as a W3C `traceparent`: in gRPC
metadata, in events and in the routing table. No span holds text of a prompt or a completion, nor
the message of an exception, which may quote one.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

from tuneloop.errors import TuneloopError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

logger = logging.getLogger("tuneloop.tracing")

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Attribute = str | int | float | bool | Sequence[str]
Attributes = Mapping[str, Attribute]
PROVIDER: Attributes = {"gen_ai.provider.name": "tuneloop"}
"""Says whose the other attributes are that follow OpenTelemetry's conventions for generative AI."""
TRACEPARENT = "traceparent"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
NOTHING: AbstractContextManager[None] = nullcontext()


class Tracing:
    """Creates this process's spans, and sends them to a processor."""

    def __init__(self, process: str, processor: "SpanProcessor") -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()
        name = os.environ.get("OTEL_SERVICE_NAME") or f"tuneloop-{process}"
        resource = Resource.create({"service.name": name, "service.version": version("tuneloop")})
        self.provider = TracerProvider(resource=resource)
        self.provider.add_span_processor(processor)
        self._tracer = self.provider.get_tracer("tuneloop")

    @contextmanager
    def span(
        self, name: str, *, kind: Kind, parent: str, links: Sequence[str], attributes: Attributes
    ) -> Iterator[None]:
        """Open a span that is the current one inside the block."""
        span = self.begin(name, kind=kind, parent=parent, links=links, attributes=attributes)
        with self._trace.use_span(
            span, end_on_exit=True, record_exception=False, set_status_on_exception=False
        ):
            try:
                yield
            except Exception as error:
                span.set_status(self._trace.StatusCode.ERROR, type(error).__name__)
                span.set_attribute("error.type", error_type(error))
                raise

    def begin(
        self,
        name: str,
        *,
        kind: Kind,
        parent: str,
        links: Sequence[str] = (),
        attributes: Attributes,
        started_ns: int | None = None,
    ) -> "Span":
        """Start a span, which the caller ends; without a parent the current one is its parent."""
        contexts = (
            self._trace.get_current_span(self._context(link)).get_span_context() for link in links
        )
        return self._tracer.start_span(
            name,
            context=self._context(parent) if parent else None,
            kind=self._trace.SpanKind[kind.upper()],
            links=[self._trace.Link(context) for context in contexts if context.is_valid],
            attributes=attributes,
            start_time=started_ns,
        )

    def current(self) -> "Span":
        """Return the current span, or one that records nothing."""
        return self._trace.get_current_span()

    def traceparent(self, span: "Span") -> str:
        """Return a span's `traceparent`; empty for one that records nothing."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._trace.set_span_in_context(span))
        return carrier.get(TRACEPARENT, "")

    def _context(self, traceparent: str) -> "Context":
        return self._propagator.extract({TRACEPARENT: traceparent})


_active: Tracing | None = None


def is_asked_for(environ: Mapping[str, str]) -> bool:
    """Return whether the environment asks for traces."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if environ.get("OTEL_TRACES_EXPORTER", "otlp") == "none":
        return False
    return any(environ.get(name) for name in ENDPOINTS)


def start(process: str) -> None:
    """Start to trace this process, if the environment asks for it."""
    if not is_asked_for(os.environ):
        return
    try:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = _exporter()
    except ImportError as error:
        # The variable may be set for all processes of a cluster, so it must not stop this one.
        logger.warning("no traces: %s; pip install 'tuneloop[otel]'", error)
        return
    start_with(BatchSpanProcessor(exporter), process)
    logger.info("traces are sent")


def _exporter() -> "SpanExporter":
    # It reads its endpoint, headers and certificates from the environment.
    protocol = next((os.environ[name] for name in PROTOCOLS if os.environ.get(name)), "")
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
            OTLPSpanExporter as GrpcExporter,
        )

        return GrpcExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def start_with(processor: "SpanProcessor", process: str) -> None:
    """Start to trace with the caller's processor."""
    global _active  # noqa: PLW0603 - one process, one tracer, as with metrics
    stop()
    _active = Tracing(process, processor)


def stop() -> None:
    """Send the remaining spans and stop tracing."""
    global _active
    tracing, _active = _active, None
    if tracing is not None:
        tracing.provider.shutdown()


def is_on() -> bool:
    """Return whether this process traces."""
    return _active is not None


def span(
    name: str,
    *,
    kind: Kind = "internal",
    parent: str = "",
    links: Sequence[str] = (),
    attributes: Attributes | None = None,
) -> AbstractContextManager[None]:
    """Put a span around a block. `parent` and `links` are traceparents; see `begin`."""
    if _active is None:
        return NOTHING
    return _active.span(name, kind=kind, parent=parent, links=links, attributes=attributes or {})


def emit(
    name: str,
    *,
    kind: Kind = "internal",
    parent: str,
    started_ns: int,
    links: Sequence[str] = (),
    attributes: Attributes | None = None,
) -> str:
    """Emit a span from `started_ns` until now; return its traceparent."""
    if _active is None:
        return ""
    made = _active.begin(
        name,
        kind=kind,
        parent=parent,
        links=links,
        attributes=attributes or {},
        started_ns=started_ns,
    )
    made.end()
    return _active.traceparent(made)


def annotate(attributes: Attributes) -> None:
    """Add attributes to the current span."""
    if _active is not None:
        _active.current().set_attributes(dict(attributes))


def rename(name: str) -> None:
    """Rename the current span."""
    if _active is not None:
        _active.current().update_name(name)


def mark_failed(reason: str) -> None:
    """Mark the current span as failed although nothing was raised."""
    if _active is not None:
        from opentelemetry.trace import StatusCode

        _active.current().set_status(StatusCode.ERROR, reason)
        _active.current().set_attribute("error.type", reason)


def error_type(error: Exception) -> str:
    """Return the class of an error as spans have it: the code that callers get, if it has one."""
    return error.reason.lower() if isinstance(error, TuneloopError) else type(error).__name__


def is_sampled(traceparent: str) -> bool:
    """Return whether the spans of a trace are kept; an empty `traceparent` names none."""
    return bool(int(traceparent[-2:] or "0", 16) & 1)


def traceparent() -> str:
    """Return the current span's `traceparent`; empty if there is none."""
    return "" if _active is None else _active.traceparent(_active.current())


def ids() -> tuple[str, str]:
    """Return the ids of the current trace and span, for a log line; empty if there are none."""
    if _active is None:
        return "", ""
    context = _active.current().get_span_context()
    return (f"{context.trace_id:032x}", f"{context.span_id:016x}") if context.is_valid else ("", "")
