"""Translates the exception tree to `google.rpc.Status`, and back.

Every deliberate error carries `ErrorInfo{reason, domain}`; a field at fault adds `BadRequest`, and
a time to retry after adds `RetryInfo`.
"""

from collections.abc import Awaitable
from typing import TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from tuneloop.errors import (
    CallerRefused,
    Conflict,
    CorruptData,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionDenied,
    SettingsError,
    TuneloopError,
    Unauthenticated,
    Unavailable,
    WeightsRefused,
)

DOMAIN = "tuneloop"
DETAILS_KEY = "grpc-status-details-bin"
MESSAGE_CHARACTERS = 1_500
"""Status messages travel in HTTP/2 headers, of which peers accept about 8 KiB."""


code_of_error: dict[type[TuneloopError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    # First, so that the code alone is read as the next.
    CallerRefused: grpc.StatusCode.PERMISSION_DENIED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    NotFound: grpc.StatusCode.NOT_FOUND,
    Conflict: grpc.StatusCode.ALREADY_EXISTS,
    FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
}


error_of_reason: dict[str, type[TuneloopError]] = {
    "CORRUPT_DATA": CorruptData,
    "WEIGHTS_REFUSED": WeightsRefused,
    "INVALID_SETTING": SettingsError,
} | {error.reason: error for error in code_of_error}


error_of_code = {code: error for error, code in code_of_error.items()} | {
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
}


def code_of(error: TuneloopError) -> grpc.StatusCode:
    """Return the status code of an error, which is that of its nearest ancestor with a code."""
    codes = (code_of_error.get(base) for base in type(error).__mro__)
    return next((code for code in codes if code is not None), grpc.StatusCode.INTERNAL)


def shorten(text: str) -> str:
    """Cut `text` to what fits into a header."""
    return text if len(text) <= MESSAGE_CHARACTERS else f"{text[:MESSAGE_CHARACTERS]}…"


def status_from_error(error: TuneloopError) -> status_pb2.Status:
    """Return the status that describes `error` to a client."""
    message = shorten(error.message)
    status = status_pb2.Status(code=code_of(error).value[0], message=message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    if error.param is not None:
        info.metadata["param"] = error.param
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.param, description=message
        )
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    status.details.add().Pack(info)
    return status


def error_from_rpc(error: grpc.aio.AioRpcError) -> TuneloopError:
    """Return the domain error that a failed call stands for.

    What the transport itself reports (nothing listens, a deadline passed) becomes `Unavailable`,
    an internal error of the other side becomes a plain `TuneloopError`.
    """
    status = status_of(error)
    message = error.details() or error.code().name
    if status is None:
        return transport_error(error.code(), message)
    kind, param, retry_after = error_of_code.get(error.code(), TuneloopError), None, None
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info) and info.domain == DOMAIN:
            kind = error_of_reason.get(info.reason, kind)
            param = info.metadata.get("param")
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    return kind(message, param=param, retry_after=retry_after)


def transport_error(code: grpc.StatusCode, message: str) -> TuneloopError:
    """Return the domain error for a status without details."""
    if code is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(f"the service cannot be reached: {message}", retry_after=2.0)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unavailable("the service did not answer in time", retry_after=2.0)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:
        return InvalidRequest("the message is too large for the service behind the gateway")
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return CallerRefused(f"the service refuses this process: {message}")
    return error_of_code.get(code, TuneloopError)(message)


def status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    """Return the `google.rpc.Status` in the trailing metadata, if there is a valid one."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


T = TypeVar("T")


async def reply_of(call: Awaitable[T]) -> T:
    """Return the call's answer, or raise the `TuneloopError` that the service raised."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from error
