"""Follows the routing table: when the stable version changes, make it serve.

The newest entry wins: while one version loads or waits to be tried again, a newer entry takes its
place. What is refused is refused once; what is unavailable is tried until a newer entry comes.
"""

import asyncio
import logging

from tuneloop import wire
from tuneloop.bus import Bus, subjects
from tuneloop.errors import CorruptData, NotFound, TuneloopError, Unavailable, WeightsRefused
from tuneloop.generation.hot_swap import HotSwap
from tuneloop.policies import WeightsReference

logger = logging.getLogger("tuneloop.generation")

FIRST_DELAY = 0.5
LONGEST_DELAY = 10.0
"""Seconds before the first and between later attempts to load a version."""


class Routing:
    """Keeps one replica on the version that the routing table names."""

    def __init__(self, bus: Bus, hot_swap: HotSwap, policy: str) -> None:
        self.bus = bus
        self.hot_swap = hot_swap
        self.key = subjects.stable_policy_key(policy)
        self.wanted: WeightsReference | None = None
        self.changed = asyncio.Event()

    async def activate_stable(self) -> None:
        """Before the first request: serve the stable version, if it can be had."""
        try:
            entry = await self.bus.routing(self.key)
            if entry is not None:
                reference = wire.decode_routing(entry.value)
                await self.hot_swap.activate(reference, at_start=True)
        except TuneloopError as error:
            logger.warning("starting with the base model: %s", error.message)

    async def run(self) -> None:
        """Follow the routing table for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.watch())
            tasks.create_task(self.follow())

    async def watch(self) -> None:
        """Note each new entry."""
        async for entry in self.bus.watch_routing(self.key):
            try:
                self.wanted = wire.decode_routing(entry.value)
            except CorruptData as error:
                logger.error("ignored a routing entry: %s", error.message)
                continue
            self.changed.set()

    async def follow(self) -> None:
        """Make the wanted version serve, again and again until it does or another is wanted."""
        while True:
            await self.changed.wait()
            self.changed.clear()
            delay = FIRST_DELAY
            while self.wanted is not None and not await self.attempt(self.wanted):
                if await self.newer_within(delay):
                    break
                delay = min(2 * delay, LONGEST_DELAY)

    async def newer_within(self, seconds: float) -> bool:
        """Wait `seconds`; True as soon as another entry came."""
        try:
            await asyncio.wait_for(self.changed.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def attempt(self, reference: WeightsReference) -> bool:
        """Activate once; False when it is worth another try."""
        try:
            await self.hot_swap.activate(reference)
        except (Unavailable, NotFound) as error:
            # A store that is replicated may show the version a little later than the table.
            logger.warning("version %d: %s", reference.policy_version, error.message)
            return False
        except WeightsRefused:
            return True  # counted and logged by the hot swap
        return True
