"""Unary calls of the services, whose errors are raised as `TuneloopError`."""

from collections.abc import Awaitable
from typing import TypeVar

import grpc

from tuneloop.rpc.status import error_from_rpc

T = TypeVar("T")


async def reply_of(call: Awaitable[T]) -> T:
    """Return the call's answer, or raise the `TuneloopError` that the service raised."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from error
