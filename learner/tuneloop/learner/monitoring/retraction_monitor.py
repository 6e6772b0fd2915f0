"""Rebuild the policy once too much of what a version was trained on has been retracted."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from tuneloop.errors import TuneloopError
from tuneloop.learner.guards.settings import GuardSettings
from tuneloop.learner.ledger.accounting import version_shares, versions
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.samples import ModelRole

logger = logging.getLogger("tuneloop.learner.monitoring")

EVERY_SECONDS = 60.0
ACTOR = "retractions"
"""Stands in the decisions as who asked for the rebuild."""


class RetractionMonitor:
    """Compares what was retracted with `rebuild_retracted`."""

    def __init__(
        self,
        database: Database,
        settings: GuardSettings,
        rebuild: Callable[[int, str], Awaitable[object]],
    ) -> None:
        """`rebuild` takes the version to go back to, and who asks."""
        self._database = database
        self._limit = settings.rebuild_retracted
        self._rebuild = rebuild

    def version_to_rebuild_from(self) -> int | None:
        """Return the parent of the oldest version of which too much was retracted, or None."""
        if self._limit is None:
            return None
        for part in version_shares.retracted_shares(self._database):
            if part.version != 0 and part.share >= self._limit:
                return versions.get_version(self._database, ModelRole.POLICY, part.version).parent
        return None

    async def check_retractions(self) -> int | None:
        """Rebuild if it is due; return the version gone back to."""
        version = await asyncio.to_thread(self.version_to_rebuild_from)
        if version is None:
            return None
        logger.warning("rebuilding from version %d: what came after was retracted", version)
        try:
            await self._rebuild(version, ACTOR)
        except TuneloopError as error:
            logger.warning("rebuilding failed and is tried again: %s", error.message)
            return None
        return version

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            await self.check_retractions()
