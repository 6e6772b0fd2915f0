"""Spans reach a collector, over either protocol, named by their process."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service_grpc

from tuneloop import tracing


@pytest.fixture
def received() -> list[Any]:
    return []


@pytest.fixture
def http_collector(received: list[Any]) -> Iterator[str]:
    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append(service.ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def grpc_collector(received: list[Any]) -> Iterator[str]:
    class Collector(service_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            received.append(request)
            return service.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    service_grpc.add_TraceServiceServicer_to_server(Collector(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop(None)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_spans_reach_a_collector(
    protocol: str,
    received: list[Any],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind = "grpc" if protocol == "grpc" else "http"
    endpoint = request.getfixturevalue(f"{kind}_collector")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    tracing.start("learner")
    try:
        with tracing.span("step", attributes={"tuneloop.samples": 3}):
            pass
    finally:
        tracing.stop()
    [batch] = received
    [resource] = batch.resource_spans
    names = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert names["service.name"] == "tuneloop-learner"
    [span] = resource.scope_spans[0].spans
    assert span.name == "step"
