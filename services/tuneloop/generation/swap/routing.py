"""Follows the routing table: when the stable version changes, make it serve; likewise the canary.

The newest entry wins: while one version loads or waits to be tried again, a newer entry takes its
place. What is refused is refused once; what is unavailable is tried until a newer entry comes.
Adapters serve side by side, so one replica answers some users with the canary. Full weights do not:
there a replica has a role, and one whose role is `canary` serves the canary to whoever asks it, or
the stable version while there is none.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, Literal, TypeAlias, TypeVar

from tuneloop import wire
from tuneloop.bus import Bus, subjects
from tuneloop.errors import CorruptData, NotFound, TuneloopError, Unavailable, WeightsRefused
from tuneloop.generation.swap.hot_swap import HotSwap
from tuneloop.policies import CanaryRoute, WeightsKind, WeightsReference

logger = logging.getLogger("tuneloop.generation")

FIRST_DELAY = 0.5
LONGEST_DELAY = 10.0
"""Seconds before the first and between later attempts to load a version."""

Role: TypeAlias = Literal["stable", "canary"]
T = TypeVar("T")


class Followed(Generic[T]):
    """One entry of the table, and what is done when it changes."""

    def __init__(
        self,
        bus: Bus,
        key: str,
        decode: Callable[[bytes], T],
        apply: Callable[[T], Awaitable[None]],
    ) -> None:
        self.bus = bus
        self.key = key
        self.decode = decode
        self.apply = apply
        self.wanted: T | None = None
        self.changed = asyncio.Event()

    async def now(self) -> T | None:
        """What the entry says; None where there is none. Raises `TuneloopError`."""
        entry = await self.bus.routing(self.key)
        return None if entry is None else self.decode(entry.value)

    async def run(self) -> None:
        """Follow the entry for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.watch())
            tasks.create_task(self.follow())

    async def watch(self) -> None:
        """Note each new value."""
        async for entry in self.bus.watch_routing(self.key):
            try:
                self.wanted = self.decode(entry.value)
            except CorruptData as error:
                logger.error("ignored a routing entry: %s", error.message)
                continue
            self.changed.set()

    async def follow(self) -> None:
        """Apply the newest value, again and again until that is done or another is wanted."""
        while True:
            await self.changed.wait()
            self.changed.clear()
            delay = FIRST_DELAY
            # Cleared before it is read: a value that comes meanwhile sets it again.
            while not await self.attempt():
                if await self.newer_within(delay):
                    break
                delay = min(2 * delay, LONGEST_DELAY)

    async def newer_within(self, seconds: float) -> bool:
        """Wait `seconds`; True as soon as another value came."""
        try:
            await asyncio.wait_for(self.changed.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def attempt(self) -> bool:
        """Apply once; False when it is worth another try."""
        try:
            await self.apply(self.wanted)  # type: ignore[arg-type]
        except (Unavailable, NotFound) as error:
            # A store that is replicated may show the version a little later than the table.
            logger.warning("%s: %s", self.key, error.message)
            return False
        except WeightsRefused:
            return True  # counted and logged by the hot swap
        return True


class Routing:
    """Keeps one replica on the versions that the routing table names."""

    def __init__(self, bus: Bus, hot_swap: HotSwap, policy: str, role: Role = "stable") -> None:
        self.hot_swap = hot_swap
        self.role = role
        self.stable_wanted = WeightsReference(
            policy=policy, policy_version=0, uri="", manifest_sha256=""
        )
        """The base model, until the table names another."""
        self.stable = Followed(
            bus, subjects.stable_policy_key(policy), wire.decode_routing, self.serve_stable
        )
        self.canary = Followed(
            bus, subjects.canary_policy_key(policy), wire.decode_canary, self.serve_canary
        )

    @property
    def entries(self) -> list[Followed[WeightsReference] | Followed[CanaryRoute | None]]:
        """What this replica follows."""
        full = self.hot_swap.engine.weights_kind is WeightsKind.FULL
        both = self.role == "canary" or not full
        return [self.stable, self.canary] if both else [self.stable]

    async def activate_stable(self) -> None:
        """Before the first request: serve what this replica's role asks for, if it can be had."""
        try:
            if self.role == "canary":
                self.hot_swap.canary = await self.canary.now()
            reference = await self.stable.now()
            if reference is not None:
                self.stable_wanted = reference
                await self.hot_swap.activate(self.served(reference), at_start=True)
        except TuneloopError as error:
            logger.warning("starting with the base model: %s", error.message)

    async def run(self) -> None:
        """Follow the routing table for ever."""
        async with asyncio.TaskGroup() as tasks:
            for entry in self.entries:
                tasks.create_task(entry.run())

    def served(self, stable: WeightsReference) -> WeightsReference:
        """What everybody gets here who names no version and is in no canary's share."""
        route = self.hot_swap.canary
        return route.weights if self.role == "canary" and route is not None else stable

    async def serve_stable(self, reference: WeightsReference) -> None:
        """A new stable version."""
        self.stable_wanted = reference
        await self.hot_swap.activate(self.served(reference))

    async def serve_canary(self, route: CanaryRoute | None) -> None:
        """A new canary, or none any more."""
        # From here on its users get it if it is in memory, and the stable version if it is not.
        self.hot_swap.canary = route
        if self.role == "canary":
            await self.hot_swap.activate(self.served(self.stable_wanted))
        elif route is not None:
            await self.hot_swap.load(route.weights)
        logger.info(
            "no canary"
            if route is None
            else f"version {route.weights.policy_version} answers {route.share:.0%} of the users"
        )
