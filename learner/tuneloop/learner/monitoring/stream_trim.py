"""Trim the stream of feedback below what the ledger holds.

The stream drops nothing by itself, so without this it fills, and then refuses everybody's feedback.
What this learner's consumer has acknowledged is in the ledger, since events are acknowledged after
the commit. It stays in the stream for a while all the same: a ledger that is restored to an older
moment reads what it lacks from there.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from tuneloop.bus import Bus, Consumer
from tuneloop.bus.subjects import FEEDBACK, feedback_of
from tuneloop.errors import TuneloopError
from tuneloop.learner import metrics
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.reports.feedback import newest_sequence

logger = logging.getLogger("tuneloop.learner.monitoring")

EVERY_SECONDS = 60.0
KEEP_SECONDS = 7 * 86_400.0
"""How long feedback stays in the stream, as rollouts do; a restored ledger may be as old."""
CROWDED = 0.5
"""Share of the stream above which it stays for less."""
KEEP_SECONDS_CROWDED = 3_600.0


class StreamTrim:
    """Deletes from the stream what the ledger has held long enough."""

    def __init__(
        self,
        bus: Bus,
        database: Database,
        policy: str,
        open_consumer: Callable[[], Awaitable[Consumer]],
    ) -> None:
        """`open_consumer` opens the one by which this ledger takes feedback in."""
        self._bus = bus
        self._database = database
        self._policy = policy
        self._open_consumer = open_consumer
        self._trimmed = 0
        """Up to which sequence it was trimmed last."""

    async def trim(self) -> int:
        """Delete what may go; return how many events that was. Raises `Unavailable`."""
        usage = await self._bus.usage(FEEDBACK)
        keep = KEEP_SECONDS_CROWDED if usage.share > CROWDED else KEEP_SECONDS
        before = usage.time.timestamp() - keep
        since = usage.created.timestamp()
        old = await asyncio.to_thread(newest_sequence, self._database, since, before)
        consumer = await self._open_consumer()
        # The ledger may be older than the consumer.
        up_to = min(old, await consumer.acknowledged())
        if up_to <= 0 or up_to == self._trimmed:
            return 0
        deleted = await self._bus.purge(FEEDBACK, feedback_of(self._policy), up_to=up_to)
        self._trimmed = up_to
        metrics.feedback_trimmed.inc(deleted)
        return deleted

    async def run(self) -> None:
        """Trim until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            try:
                await self.trim()
            except TuneloopError as error:
                logger.warning("the stream of feedback is trimmed later: %s", error.message)
