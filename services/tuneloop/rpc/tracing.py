"""Traces across gRPC calls: `traceparent` travels as metadata, if tracing is on."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import grpc

from tuneloop import tracing

if TYPE_CHECKING:
    from tuneloop.rpc.interceptors import Continuation, Handler

PROBES = "/grpc.health.v1.Health/"


def client_interceptors() -> Sequence[grpc.aio.ClientInterceptor]:
    """Return the interceptors with which a channel passes the trace on."""
    # In gRPC an interceptor handles one kind of call.
    return (UnaryCalls(), StreamedCalls()) if tracing.is_on() else ()


def server_interceptors() -> Sequence[grpc.aio.ServerInterceptor]:
    """Return the interceptors with which a server continues the caller's trace."""
    return (ServedCalls(),) if tracing.is_on() else ()


class UnaryCalls(grpc.aio.UnaryUnaryClientInterceptor):
    """Adds the trace to calls that return one answer."""

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        """Call with the trace."""
        return await continuation(traced(details), request)


class StreamedCalls(grpc.aio.UnaryStreamClientInterceptor):
    """Adds the trace to calls that return a stream."""

    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        """Call with the trace."""
        return await continuation(traced(details), request)


def traced(details: Any) -> Any:
    """Return the details of a call with the current trace in its metadata."""
    traceparent = tracing.traceparent()
    if not traceparent:
        return details
    metadata = grpc.aio.Metadata(*(details.metadata or ()))
    metadata.add(tracing.TRACEPARENT, traceparent)
    return details._replace(metadata=metadata)


class ServedCalls(grpc.aio.ServerInterceptor):
    """Puts a span around each call with one request."""

    async def intercept_service(
        self, continuation: "Continuation", handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """Wrap the handler of the call."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or handler.request_streaming or method.startswith(PROBES):
            return cast("Handler | None", handler)
        metadata = dict(handler_call_details.invocation_metadata or ())
        parent = str(metadata.get(tracing.TRACEPARENT, ""))
        made: Handler
        if handler.response_streaming:
            made = grpc.unary_stream_rpc_method_handler(
                streamed(method, parent, handler.unary_stream),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        else:
            made = grpc.unary_unary_rpc_method_handler(
                unary(method, parent, handler.unary_unary),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return made


def unary(method: str, parent: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a handler that returns one answer in a span."""

    async def call(request: Any, context: Any) -> Any:
        with span_of(method, parent):
            return await behaviour(request, context)

    return call


def streamed(method: str, parent: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a handler that yields its answers in a span."""

    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        with span_of(method, parent):
            answers = behaviour(request, context)
            try:
                async for answer in answers:
                    yield answer
            finally:
                await answers.aclose()

    return call


def span_of(method: str, parent: str) -> Any:
    """Return the span of a call."""
    service, _, name = method.lstrip("/").partition("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
    return tracing.span(f"{service}/{name}", kind="server", parent=parent, attributes=attributes)
