"""Build the canary from the learner's settings."""

import asyncio
import logging

from tuneloop.bus import Bus
from tuneloop.errors import TuneloopError
from tuneloop.learner.clients.generation import GenerationClient
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.release.canary.controller import CanaryController, VersionRelease
from tuneloop.learner.settings import LearnerSettings
from tuneloop.rpc.channel import connect

logger = logging.getLogger("tuneloop.learner.app")

RETRY_SECONDS = 5.0


def make_canary(
    settings: LearnerSettings, *, bus: Bus, database: Database, release: VersionRelease
) -> CanaryController:
    """Build the canary controller. Call this inside the event loop."""
    addresses = [settings.generation_address]
    if settings.canary.address:
        addresses.append(settings.canary.address)
    return CanaryController(
        policy=settings.policy,
        bus=bus,
        database=database,
        release=release,
        generation=[
            GenerationClient(connect(address, settings.grpc_tls), settings.policy)
            for address in addresses
        ],
        settings=settings.canary,
    )


async def end_left_over(canary: CanaryController) -> None:
    """End the trial that an earlier run left, now that canaries are off."""
    while canary.version is not None:
        try:
            await canary.stop("new versions are not tried on users any more")
        except TuneloopError as error:
            logger.warning("a canary of an earlier run goes on: %s", error.message)
            await asyncio.sleep(RETRY_SECONDS)
