"""One interceptor for every call: errors become statuses, outcomes become metrics.

- A `TuneloopError` becomes its `google.rpc.Status` (see `tuneloop.rpc.status`).
- Request bytes that are not the expected message become INVALID_ARGUMENT; gRPC for Python itself
  answers INTERNAL, because it parses before any handler or interceptor runs.
- Anything else is a bug: it is logged with an id, and the client gets the id and nothing more.
"""

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import grpc
from google.protobuf.message import DecodeError
from prometheus_client import Counter, Histogram

from tuneloop.errors import CorruptData, TuneloopError
from tuneloop.rpc.access import AccessControl
from tuneloop.rpc.status import DETAILS_KEY, code_of, status_from_error
from tuneloop.telemetry import LATENCY_BUCKETS

logger = logging.getLogger("tuneloop.rpc")

requests = Counter("tuneloop_rpc_requests_total", "Calls that ended.", ["method", "code"])
seconds = Histogram(
    "tuneloop_rpc_seconds",
    "Time from the start of a call to its end.",
    ["method"],
    buckets=LATENCY_BUCKETS,
)

if TYPE_CHECKING:
    # Generic in the type stubs only.
    Handler = grpc.RpcMethodHandler[Any, Any]
    Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]


class Malformed:
    """Stands for a request that did not parse, until an error can be returned."""

    def __init__(self, problem: str) -> None:
        self.problem = problem


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Wraps calls with one request; streams of requests (reflection has one) pass unchanged."""

    def __init__(self, access: AccessControl) -> None:
        self._access = access

    async def intercept_service(
        self, continuation: "Continuation", handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """Wrap the handler of the call."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return cast("Handler | None", handler)
        method = handler_call_details.method
        behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
        make = (
            grpc.unary_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        yields = inspect.isasyncgenfunction(behaviour)
        translate = translate_stream_errors if yields else translate_unary_errors
        wrapped: Handler = make(
            translate(method, behaviour, self._access),
            request_deserializer=tolerant_deserializer(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )
        return wrapped


def tolerant_deserializer(
    deserialize: Callable[[bytes], Any] | None,
) -> Callable[[bytes], Any] | None:
    """Return a deserializer that returns `Malformed` where `deserialize` would raise."""
    if deserialize is None:
        return None

    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            return Malformed(str(error))

    return parse


def translate_unary_errors(
    method: str, behaviour: Callable[..., Any], access: AccessControl
) -> Callable[..., Any]:
    """Wrap a handler that returns one answer, or that writes its stream itself."""

    async def call(request: Any, context: Any) -> Any:
        async with translate_errors(method, request, context, access):
            return await behaviour(request, context)

    return call


def translate_stream_errors(
    method: str, behaviour: Callable[..., Any], access: AccessControl
) -> Callable[..., Any]:
    """Wrap a handler that yields its answers."""

    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        async with translate_errors(method, request, context, access):
            answers = behaviour(request, context)
            try:
                async for answer in answers:
                    yield answer
            finally:
                await answers.aclose()

    return call


@asynccontextmanager
async def translate_errors(
    method: str, request: Any, context: Any, access: AccessControl
) -> AsyncIterator[None]:
    """Check that the caller may call, turn an exception into a status, and count the outcome."""
    started = time.perf_counter()
    code = grpc.StatusCode.OK
    try:
        access.admit(method, context)
        if isinstance(request, Malformed):
            raise CorruptData(f"the request is not a valid message: {request.problem}")
        yield
        code = code_set_by_handler(context) or grpc.StatusCode.OK
    except TuneloopError as error:
        code = code_of(error)
        await abort_with(context, error)
    except grpc.aio.AbortError:
        code = code_set_by_handler(context) or grpc.StatusCode.UNKNOWN
        raise
    except (asyncio.CancelledError, GeneratorExit):
        code = grpc.StatusCode.CANCELLED
        raise
    except Exception as error:
        code = grpc.StatusCode.INTERNAL
        incident = uuid4().hex[:12]
        logger.exception("%s failed [%s]", method, incident)
        await abort_with(
            context, TuneloopError(f"internal error; see the log for {incident}"), cause=error
        )
    finally:
        access.record(method, code.name)
        requests.labels(method, code.name).inc()
        seconds.labels(method).observe(time.perf_counter() - started)


async def abort_with(context: Any, error: TuneloopError, cause: Exception | None = None) -> None:
    """End the call with the status of `error`."""
    status = status_from_error(error)
    metadata = ((DETAILS_KEY, status.SerializeToString()),)
    try:
        await context.abort(code_of(error), status.message, metadata)
    except grpc.aio.AbortError as aborted:
        raise aborted from (cause or error)


def code_set_by_handler(context: Any) -> grpc.StatusCode | None:
    """Return the status code that the handler set itself, if any."""
    code = context.code()
    if isinstance(code, int):
        return next((known for known in grpc.StatusCode if known.value[0] == code), None)
    return code if isinstance(code, grpc.StatusCode) else None
