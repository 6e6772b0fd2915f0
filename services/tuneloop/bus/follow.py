"""Follow an entry of the routing table: apply its newest value, and retry while that fails.

The newest value wins: while one is applied or waits to be retried, a newer one takes its place as
soon as that attempt ends. A value that does not decode or is refused is logged and passed over;
the follower waits for the next one.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from tuneloop.backoff import Backoff
from tuneloop.bus import Bus
from tuneloop.errors import CorruptData, NotFound, Unavailable, WeightsRefused

logger = logging.getLogger("tuneloop.bus")

T = TypeVar("T")


class Follower(Generic[T]):
    """One entry of the table, and what to do with each of its values."""

    def __init__(
        self,
        bus: Bus,
        key: str,
        *,
        decode: Callable[[bytes], T],
        apply: Callable[[T], Awaitable[None]],
    ) -> None:
        """Take the entry's key; `apply` may raise `Unavailable` or `NotFound` to be retried."""
        self._bus = bus
        self._key = key
        self._decode = decode
        self._apply = apply
        self._newest: T
        """There once `_changed` was set."""
        self._changed = asyncio.Event()

    async def current(self) -> T | None:
        """Return what the entry says now, or None if there is no entry.

        Raises `Unavailable`, `CorruptData`.
        """
        entry = await self._bus.routing(self._key)
        return None if entry is None else self._decode(entry.value)

    async def run(self) -> None:
        """Watch the entry and apply its values. Never returns."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            tasks.create_task(self._apply_newest())

    async def _watch(self) -> None:
        async for entry in self._bus.watch_routing(self._key):
            try:
                self._newest = self._decode(entry.value)
            except CorruptData as error:
                logger.error("%s: ignored a routing entry: %s", self._key, error.message)
                continue
            self._changed.set()

    async def _apply_newest(self) -> None:
        while True:
            await self._changed.wait()
            delays = Backoff()
            while not await self._attempt():
                if await self._changed_within(delays.next_delay()):
                    delays.reset()

    async def _attempt(self) -> bool:
        """Apply the newest value once; return whether that settled it."""
        # Cleared before the value is read: one that arrives meanwhile sets it again.
        self._changed.clear()
        try:
            await self._apply(self._newest)
        except (Unavailable, NotFound) as error:
            # A replicated weight store may show a version a little later than the table.
            logger.warning("%s: %s", self._key, error.message)
            return False
        except WeightsRefused:
            return True  # counted and logged by what refused it
        except CorruptData as error:
            logger.error("%s: ignored a routing entry: %s", self._key, error.message)
        return True

    async def _changed_within(self, seconds: float) -> bool:
        """Wait `seconds`, or until a newer value arrives; return whether one did."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True
