"""Events of generation: of one call, from the canary's replica or another, and of several calls."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import grpc

from tuneloop.errors import Overloaded, Unavailable
from tuneloop.gateway.canary import CanaryReplica
from tuneloop.gateway.context import Gateway
from tuneloop.rpc.status import error_from_rpc
from tuneloop.v1 import generation_pb2, generation_pb2_grpc

logger = logging.getLogger("tuneloop.gateway")

Event = tuple[int, generation_pb2.GenerateResponse]
"""A choice's index in the HTTP answer, and its event."""


def route_call(
    gateway: Gateway, request: generation_pb2.GenerateRequest, first_choice: int
) -> AsyncGenerator[Event]:
    """Return the events of one call, from the canary's replica if the request is for it."""
    if gateway.canary is not None and gateway.canary.takes(request):
        return canary_events(gateway, gateway.canary, request, first_choice)
    return call_events(gateway, gateway.generation, request, first_choice)


async def canary_events(
    gateway: Gateway,
    canary: CanaryReplica,
    request: generation_pb2.GenerateRequest,
    first_choice: int,
) -> AsyncGenerator[Event]:
    """Yield the events of the canary's replica, or of the stable one if that does not answer."""
    for service in (canary.generation, gateway.generation):
        begun = False
        try:
            async with aclosing(call_events(gateway, service, request, first_choice)) as call:
                async for event in call:
                    begun = True
                    yield event
            return
        except (Unavailable, Overloaded):
            if begun or service is gateway.generation:
                raise
            logger.warning("the canary's replica does not answer; using the stable one")


async def call_events(
    gateway: Gateway,
    service: generation_pb2_grpc.GenerationServiceStub,
    request: generation_pb2.GenerateRequest,
    first_choice: int,
) -> AsyncGenerator[Event]:
    """Yield the events of one call; closing it cancels the call, which aborts the request."""
    if service is gateway.generation:
        # The replica that holds the candidates is told which was chosen.
        alone = request.completion_id if request.are_candidates else ""
        call = await gateway.replicas.generate(request, route_by=request.session_id or alone)
    else:
        call = service.Generate(request, timeout=gateway.settings.request_timeout_seconds)
    try:
        async for event in call:
            index = event.delta.index if event.WhichOneof("event") == "delta" else event.final.index
            yield first_choice + index, event
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from error
    finally:
        call.cancel()


async def interleave(calls: Sequence[AsyncGenerator[Event]]) -> AsyncGenerator[Event]:
    """Yield the events of several calls as they arrive; the first error ends all."""
    queue: asyncio.Queue[Event | BaseException | None] = asyncio.Queue(maxsize=64)

    async def forward(call: AsyncGenerator[Event]) -> None:
        try:
            async with aclosing(call):
                async for event in call:
                    await queue.put(event)
        except Exception as error:  # raised by the reader
            await queue.put(error)
        else:
            await queue.put(None)

    tasks = [asyncio.create_task(forward(call)) for call in calls]
    running = len(tasks)
    try:
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
