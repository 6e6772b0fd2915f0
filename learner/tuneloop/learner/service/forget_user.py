"""Forget a user, in the ledger and on the bus, while no step runs."""

import asyncio
import logging

from tuneloop.bus import Bus
from tuneloop.bus.subjects import FEEDBACK, of_user, token
from tuneloop.learner.ledger.accounting import downstream, forget_user
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.loop import Loop
from tuneloop.v1 import learner_pb2

logger = logging.getLogger("tuneloop.learner.service")


class ForgetUser:
    """Deletes a user's rows and events, and says what had learned from them."""

    def __init__(self, database: Database, bus: Bus, loop: Loop) -> None:
        self._database = database
        self._bus = bus
        self._loop = loop

    async def forget(self, user: str) -> learner_pb2.ForgetUserResponse:
        """Forget a user by their hash; safe to repeat. Raises `InvalidRequest`, `Unavailable`.

        The events are deleted first, so that none comes again. Before that, steps that no version
        has yet become a version, so that every version that learned from the user has a number.
        """
        user_hash = token(user, "user_hash")
        async with self._loop.paused_turns():
            for model in downstream.MODELS:
                if await asyncio.to_thread(
                    forget_user.used_since_a_version, self._database, user_hash, model
                ):
                    await self._loop.publish_soon(model)
            purged = 0
            for stream, subject_filter in of_user(user_hash):
                purged += await self._bus.purge(stream, subject_filter)
            # By the clock of the events: what the bus stored before this never comes in.
            now = (await self._bus.usage(FEEDBACK)).time.timestamp()
            gone = await asyncio.to_thread(forget_user.forget_user, self._database, user_hash, now)
        lineage = await asyncio.to_thread(downstream.of_user, self._database, user_hash)
        logger.info("forgot a user: %d rollouts, %d feedback", gone.rollouts, gone.feedback)
        return learner_pb2.ForgetUserResponse(
            rollouts_removed=gone.rollouts,
            feedback_removed=gone.feedback,
            events_purged=purged,
            policy_versions=lineage.policy.direct,
            descended_versions=lineage.policy.descended,
            reward_model_versions=lineage.reward_model.direct,
            rebuild_from=lineage.rebuild_from,
        )
