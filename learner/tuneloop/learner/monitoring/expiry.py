"""Expire feedback that is too old to learn from, regularly."""

import asyncio
import logging
from collections.abc import Callable

from tuneloop.host import steady_time
from tuneloop.learner import metrics
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.events import lifecycle

logger = logging.getLogger("tuneloop.learner.monitoring")

EVERY_SECONDS = 60.0


class Expiry:
    """Expires feedback by age; both limits are in seconds, None is no limit."""

    def __init__(
        self,
        database: Database,
        *,
        max_age: float | None,
        rollout_wait: float | None,
        clock: Callable[[], float] = steady_time,
    ) -> None:
        self._database = database
        self._max_age = max_age
        self._rollout_wait = rollout_wait
        self._clock = clock

    def expire_old_feedback(self) -> int:
        """Expire what is too old now; return how much feedback that was."""
        ended = lifecycle.expire_feedback(
            self._database,
            self._clock(),
            max_age=self._max_age,
            rollout_wait=self._rollout_wait,
        )
        if ended:
            metrics.feedback_expired.inc(ended)
            logger.info("%d feedback expired", ended)
        return ended

    async def run(self) -> None:
        """Expire feedback until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            await asyncio.to_thread(self.expire_old_feedback)
