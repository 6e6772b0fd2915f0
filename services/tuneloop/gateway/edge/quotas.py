"""Today's usage of each key, stored in the bus's routing table and shared by all gateways.

Every gateway counts by itself and adds new usage to the key's entry every few seconds, by
compare-and-set, so that gateways do not overwrite each other and a restart keeps what was written.
A gateway that is killed loses at most the usage of `FLUSH_SECONDS`; an orderly stop writes
everything. A write whose acknowledgement is lost counts those seconds twice. While the bus is down
a gateway continues with what it knows, and writes later.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from tuneloop.bus import Bus, RoutingEntry, subjects
from tuneloop.errors import Conflict, Unavailable

logger = logging.getLogger("tuneloop.gateway")

FLUSH_SECONDS = 5.0
DAY_SECONDS = 86_400


def today(now: float | None = None) -> int:
    """Return the days since 1970, in UTC."""
    return int((time.time() if now is None else now) // DAY_SECONDS)


def seconds_to_next_day() -> float:
    """Return the seconds until 00:00 UTC."""
    now = time.time()
    return (today(now) + 1) * DAY_SECONDS - now


class KeyUsage:
    """One key's requests and tokens of one day."""

    def __init__(self, day: Callable[[], int] = today) -> None:
        self._today = day
        self._day = day()
        self._stored = (0, 0)
        self._new = (0, 0)

    def _turn(self) -> None:
        """Start over on a new day; usage of the old one that was not written no longer matters."""
        day = self._today()
        if day != self._day:
            self._day, self._stored, self._new = day, (0, 0), (0, 0)

    @property
    def requests(self) -> int:
        """Of today."""
        self._turn()
        return self._stored[0] + self._new[0]

    @property
    def tokens(self) -> int:
        """Of today."""
        self._turn()
        return self._stored[1] + self._new[1]

    def add(self, *, requests: int = 0, tokens: int = 0) -> None:
        """Count usage."""
        self._turn()
        self._new = (self._new[0] + requests, self._new[1] + tokens)

    def stored(self, document: bytes | None) -> None:
        """Take over the table's entry, if it is of today."""
        self._turn()
        if document is not None and (known := json.loads(document))["day"] == self._day:
            self._stored = (known["requests"], known["tokens"])

    def to_store(self) -> Callable[[], None] | None:
        """Return what to call once the document is stored, or None if nothing is new."""
        self._turn()
        if self._new == (0, 0):
            return None
        day, (requests, tokens) = self._day, self._new

        def wrote() -> None:
            # Usage since then is still new; after midnight none of this matters.
            if self._day == day:
                self._stored = (self._stored[0] + requests, self._stored[1] + tokens)
                self._new = (self._new[0] - requests, self._new[1] - tokens)

        return wrote

    def document(self) -> bytes:
        """Return the document to store."""
        self._turn()
        return json.dumps(
            {"day": self._day, "requests": self.requests, "tokens": self.tokens}
        ).encode()


class Book:
    """The usage of every key that has limits."""

    def __init__(self) -> None:
        self._usage: dict[str, KeyUsage] = {}
        self._unread: set[str] = set()

    def of(self, key_id: str) -> KeyUsage:
        """Return a key's usage; its stored part is read by the next flush."""
        if key_id not in self._usage:
            self._usage[key_id] = KeyUsage()
            self._unread.add(key_id)
        return self._usage[key_id]

    async def flush(self, bus: Bus) -> None:
        """Read entries that were not read yet, and write new usage. Raises `Unavailable`."""
        for key_id, usage in list(self._usage.items()):
            while key_id in self._unread or usage.to_store() is not None:
                entry = await bus.routing(subjects.usage_key(key_id))
                self._unread.discard(key_id)
                usage.stored(None if entry is None else entry.value)
                await write(bus, key_id, usage, entry)


async def flush_regularly(
    flushes: Sequence[Callable[[Bus], Awaitable[None]]], bus: Bus, stop: asyncio.Event
) -> None:
    """Flush what is counted regularly, and once more when `stop` is set."""
    last = False
    while not last:
        last = stop.is_set()
        try:
            for flush in flushes:
                await flush(bus)
        except Unavailable as error:
            logger.debug("usage of keys is not stored yet: %s", error.message)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                await stop.wait()


async def write(bus: Bus, key_id: str, usage: KeyUsage, entry: RoutingEntry | None) -> None:
    """Write new usage over `entry`, unless another gateway was faster."""
    wrote = usage.to_store()
    if wrote is None:
        return
    revision = None if entry is None else entry.revision
    with contextlib.suppress(Conflict):
        key = subjects.usage_key(key_id)
        await bus.set_routing(key, usage.document(), revision=revision)
        wrote()
