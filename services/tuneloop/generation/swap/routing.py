"""Keeps a replica on the versions that the routing table names: the stable one and the canary's.

Adapters are served side by side, so one replica answers some users with the canary. With full
weights each replica has a role, and one whose role is `canary` serves the canary to everyone who
asks it, or the stable version while there is no canary.
"""

import asyncio
import logging
from typing import Literal, TypeAlias

from tuneloop import wire
from tuneloop.bus import Bus, subjects
from tuneloop.bus.follow import Follower
from tuneloop.errors import TuneloopError
from tuneloop.generation.swap.hot_swap import HotSwap
from tuneloop.policies import CanaryRoute, WeightsKind, WeightsReference

logger = logging.getLogger("tuneloop.generation")

Role: TypeAlias = Literal["stable", "canary"]


class Routing:
    """Keeps one replica on the versions that the routing table names."""

    def __init__(self, bus: Bus, hot_swap: HotSwap, policy: str, role: Role = "stable") -> None:
        self.hot_swap = hot_swap
        self.role = role
        self.stable_wanted = WeightsReference.base_model(policy)
        """The base model, until the table names another."""
        self.stable = Follower(
            bus,
            subjects.stable_policy_key(policy),
            decode=wire.decode_routing,
            apply=self.serve_stable,
        )
        self.canary = Follower(
            bus,
            subjects.canary_policy_key(policy),
            decode=wire.decode_canary,
            apply=self.serve_canary,
        )

    @property
    def entries(self) -> list[Follower[WeightsReference] | Follower[CanaryRoute | None]]:
        """The entries that this replica follows."""
        full = self.hot_swap.engine.weights_kind is WeightsKind.FULL
        both = self.role == "canary" or not full
        return [self.stable, self.canary] if both else [self.stable]

    async def activate_stable(self) -> None:
        """Serve the version of this replica's role; keep the base model if that fails."""
        try:
            if self.role == "canary":
                self.hot_swap.canary = await self.canary.current()
            reference = await self.stable.current()
            if reference is not None:
                self.stable_wanted = reference
                await self.hot_swap.activate(self.served_version(reference), at_start=True)
        except TuneloopError as error:
            logger.warning("starting with the base model: %s", error.message)

    async def run(self) -> None:
        """Follow the routing table. Never returns."""
        async with asyncio.TaskGroup() as tasks:
            for entry in self.entries:
                tasks.create_task(entry.run())

    def served_version(self, stable: WeightsReference) -> WeightsReference:
        """Return the version for requests that name none and are not in a canary's share."""
        route = self.hot_swap.canary
        return route.weights if self.role == "canary" and route is not None else stable

    async def serve_stable(self, reference: WeightsReference) -> None:
        """Serve a new stable version."""
        self.stable_wanted = reference
        await self.hot_swap.activate(self.served_version(reference))

    async def serve_canary(self, route: CanaryRoute | None) -> None:
        """Take a new canary, or none."""
        # From here on its users get it if it is in memory, else the stable version.
        self.hot_swap.canary = route
        if self.role == "canary":
            await self.hot_swap.activate(self.served_version(self.stable_wanted))
        elif route is not None:
            await self.hot_swap.load(route.weights)
        logger.info(
            "no canary"
            if route is None
            else f"version {route.weights.policy_version} answers {route.share:.0%} of the users"
        )
