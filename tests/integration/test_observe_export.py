"""Spans reach a collector, over either protocol, named by their process."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service_grpc
from support.otlp_collector import Collector, collecting

from tuneloop import tracing


@contextmanager
def collecting_by_grpc() -> Iterator[Collector]:
    collector = Collector()

    class Servicer(service_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            collector.batches.append(request)
            return service.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    service_grpc.add_TraceServiceServicer_to_server(Servicer(), server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield collector
    server.stop(None)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_spans_reach_a_collector(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting_by_grpc() if protocol == "grpc" else collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
        tracing.start("learner")
        try:
            with tracing.span("step", attributes={"tuneloop.samples": 3}):
                pass
        finally:
            tracing.stop()
        [collected] = collector.spans()
    assert (collected.service, collected.span.name) == ("tuneloop-learner", "step")
