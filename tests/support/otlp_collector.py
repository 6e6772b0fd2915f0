"""A collector of OpenTelemetry's over HTTP, in a thread of the test."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service

SAMPLING: dict[str, Any] = {
    "temperature": 0.25,
    "top_p": 0.5,
    "top_k": 7,
    "max_tokens": 9,
    "seed": 4,
    "n": 2,
    "stop": ["zz"],
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "response_format": {"type": "json_object"},
}
"""Parameters of a chat, each of which its span has."""
SAMPLING_ATTRIBUTES: dict[str, Any] = {
    "gen_ai.request.temperature": 0.25,
    "gen_ai.request.top_p": 0.5,
    "gen_ai.request.top_k": 7.0,
    "gen_ai.request.max_tokens": 9,
    "gen_ai.request.seed": 4,
    "gen_ai.request.choice.count": 2,
    "gen_ai.request.stop_sequences": ["zz"],
    "gen_ai.request.presence_penalty": 0.5,
    "gen_ai.request.frequency_penalty": -0.5,
    "gen_ai.output.type": "json",
}


@dataclass(frozen=True)
class Collected:
    """A span and the service it is of."""

    service: str
    span: Any

    @property
    def trace(self) -> str:
        return str(self.span.trace_id.hex())

    @property
    def attributes(self) -> dict[str, Any]:
        return {attribute.key: value_of(attribute.value) for attribute in self.span.attributes}


@dataclass
class Collector:
    endpoint: str = ""
    batches: list[Any] = field(default_factory=list)

    def spans(self) -> list[Collected]:
        return [
            Collected(service_of(resource), span)
            for batch in list(self.batches)
            for resource in batch.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


def value_of(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(item) for item in value.array_value.values]
    return getattr(value, kind)


def service_of(resource_spans: Any) -> str:
    names = {a.key: a.value.string_value for a in resource_spans.resource.attributes}
    return str(names["service.name"])


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.batches.append(service.ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    collector.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
