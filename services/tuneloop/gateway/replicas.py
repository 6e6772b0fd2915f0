"""Calls of generation, which may have several replicas: in turn, or a session's to one of them.

A replica keeps what it computed of the prompts that it has read (its prefix cache), and a turn of a
conversation begins with the turn before.
"""

import functools
from typing import Any

import grpc

from tuneloop.gateway.settings import GatewaySettings
from tuneloop.rpc.channel import (
    connect_to,
    may_have_replicas,
    session_metadata,
    wait_until_connected,
)
from tuneloop.rpc.status import reply_of
from tuneloop.v1 import generation_pb2, generation_pb2_grpc

CHOICE_TIMEOUT = 5.0
"""Seconds; an answer waits for it."""
Metadata = tuple[tuple[str, str], ...]


class GenerationReplicas:
    """The replicas of generation. Create it inside the event loop; nothing needs to be up yet."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._channels: list[grpc.aio.Channel] = []
        self.channel = self._connect(by_session=False)
        """To each replica in turn."""
        self.stub = generation_pb2_grpc.GenerationServiceStub(self.channel)

    async def generate(
        self, request: generation_pb2.GenerateRequest, *, route_by: str = ""
    ) -> "grpc.aio.UnaryStreamCall[Any, generation_pb2.GenerateResponse]":
        """Start a call, on the replica with other calls that have the same `route_by`: a session's.

        Where there is no connection it waits a moment for one that was lost.
        """
        stub, metadata = self._replica(route_by)
        if metadata is None:
            await wait_until_connected(self.channel)
        timeout = self._settings.request_timeout_seconds
        call: grpc.aio.UnaryStreamCall[Any, generation_pb2.GenerateResponse]
        call = stub.Generate(request, timeout=timeout, metadata=metadata)
        return call

    async def choose(self, choice: generation_pb2.ChooseCandidateRequest, *, route_by: str) -> None:
        """Tell the replica that has them which of a request's candidates was answered.

        Raises `NotFound` if another replica serves in its place by now, or what the call raises.
        """
        stub, metadata = self._replica(route_by)
        await reply_of(stub.ChooseCandidate(choice, timeout=CHOICE_TIMEOUT, metadata=metadata))

    def _replica(
        self, route_by: str
    ) -> tuple[generation_pb2_grpc.GenerationServiceStub, Metadata | None]:
        """Return what to call, and with which metadata: any replica, or always the same one."""
        if route_by and self._take_sessions():
            return self._sessions[1], session_metadata(route_by)
        return self.stub, None

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            await channel.close()

    def _take_sessions(self) -> bool:
        """Return whether replicas can be told apart, and any may serve.

        Connections by session are made at the first call for a replica, so there may be none yet.
        """
        if not may_have_replicas(self._settings.generation_address):
            return False
        state = self._sessions[0].get_state()
        return state is not grpc.ChannelConnectivity.TRANSIENT_FAILURE

    @functools.cached_property
    def _sessions(self) -> tuple[grpc.aio.Channel, generation_pb2_grpc.GenerationServiceStub]:
        """Connections of their own, from the first session on."""
        channel = self._connect(by_session=True)
        return channel, generation_pb2_grpc.GenerationServiceStub(channel)

    def _connect(self, *, by_session: bool) -> grpc.aio.Channel:
        settings = self._settings
        channel = connect_to(settings, settings.generation_address, by_session=by_session)
        self._channels.append(channel)
        return channel
