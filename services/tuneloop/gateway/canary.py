"""Sends a share of the users to the replica that serves a canary of full weights.

One replica of full weights holds one version, so the canary has a replica of its own
(`TUNELOOP_GENERATION_ROLE=canary`), and who goes there is decided here, by the same rule as inside
a replica of adapters. While the canary's replica does not answer, its users get the stable one.
"""

import asyncio
import logging
from contextlib import suppress

from tuneloop import wire
from tuneloop.bus import Bus, subjects
from tuneloop.errors import CorruptData
from tuneloop.policies import CanaryRoute
from tuneloop.rpc.channel import connect
from tuneloop.rpc.tls import Tls
from tuneloop.v1 import generation_pb2, generation_pb2_grpc

logger = logging.getLogger("tuneloop.gateway")


class CanaryReplica:
    """The canary's replica and its users; call it inside the event loop."""

    def __init__(self, address: str, bus: Bus, policy: str, tls: Tls | None = None) -> None:
        self.route: CanaryRoute | None = None
        self.channel = connect(address, tls)
        self.generation = generation_pb2_grpc.GenerationServiceStub(self.channel)
        self._bus = bus
        self._key = subjects.canary_policy_key(policy)
        self._following = asyncio.create_task(self._follow(), name="canary route")

    def takes(self, request: generation_pb2.GenerateRequest) -> bool:
        """Whether the request is for the canary: not where it names a version itself."""
        if self.route is None or request.HasField("policy_version"):
            return False
        return self.route.takes(request.route_by)

    async def close(self) -> None:
        """Follow no more and disconnect."""
        self._following.cancel()
        with suppress(asyncio.CancelledError):
            await self._following
        await self.channel.close()

    async def _follow(self) -> None:
        async for entry in self._bus.watch_routing(self._key):
            try:
                self.route = wire.decode_canary(entry.value)
            except CorruptData as error:
                logger.error("ignored a routing entry: %s", error.message)
