"""Sends a share of the users to the replica that serves a canary of full weights.

One replica of full weights holds one version, so the canary has a replica of its own
(`TUNELOOP_GENERATION_ROLE=canary`). This module decides which users go there, by the same rule as
inside a replica of adapters. While the canary's replica does not answer, its users get the stable
version.
"""

import asyncio
from contextlib import suppress

import grpc

from tuneloop import wire
from tuneloop.bus import Bus, subjects
from tuneloop.bus.follow import Follower
from tuneloop.policies import CanaryRoute
from tuneloop.v1 import generation_pb2, generation_pb2_grpc


class CanaryReplica:
    """The canary's replica and its users. Create it inside the event loop."""

    def __init__(self, channel: grpc.aio.Channel, bus: Bus, policy: str) -> None:
        self.route: CanaryRoute | None = None
        self.channel = channel
        self.generation = generation_pb2_grpc.GenerationServiceStub(self.channel)
        entry = Follower(
            bus,
            subjects.canary_policy_key(policy),
            decode=wire.decode_canary,
            apply=self._set_route,
        )
        self._following = asyncio.create_task(entry.run(), name="canary route")

    def takes(self, request: generation_pb2.GenerateRequest) -> bool:
        """Return whether the canary gets the request; never one that names a version."""
        if self.route is None or request.HasField("policy_version"):
            return False
        return self.route.takes(request.route_by)

    async def close(self) -> None:
        """Stop following the routing table, and disconnect."""
        self._following.cancel()
        with suppress(asyncio.CancelledError):
            await self._following
        await self.channel.close()

    async def _set_route(self, route: CanaryRoute | None) -> None:
        self.route = route
