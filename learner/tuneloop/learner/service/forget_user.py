"""Forget a user, in the ledger and on the bus, while no step runs."""

import asyncio
import logging
import time

from tuneloop.bus import Bus
from tuneloop.bus.subjects import FEEDBACK, TOKEN, feedback_with_id, of_user, token
from tuneloop.learner.ledger.accounting import downstream, forget_user
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.loop import Loop
from tuneloop.v1 import learner_pb2

OVERWRITE_SECONDS = 120.0
"""How long events are overwritten; enough for some 8,000."""

logger = logging.getLogger("tuneloop.learner.service")


class ForgetUser:
    """Deletes a user's rows and events, and says what had learned from them."""

    def __init__(self, database: Database, bus: Bus, loop: Loop) -> None:
        self._database = database
        self._bus = bus
        self._loop = loop

    async def forget(self, user: str) -> learner_pb2.ForgetUserResponse:
        """Forget a user by their hash; safe to repeat. Raises `InvalidRequest`, `Unavailable`.

        The events are deleted first, so that none comes again. Steps that no version has yet become
        a version, so that every version that learned from the user has a number.
        """
        user_hash = token(user, "user_hash")
        # Before training pauses: it takes long where there are many.
        end, purged, left = time.monotonic() + OVERWRITE_SECONDS, 0, 0
        for stream, filters in (await self._places(user_hash)).items():
            seconds = max(0.0, end - time.monotonic())
            erased = await self._bus.erase(stream, filters, seconds=seconds)
            purged, left = purged + erased.overwritten + erased.left, left + erased.left
        async with self._loop.paused_turns():
            for model in downstream.MODELS:
                if await asyncio.to_thread(
                    forget_user.used_since_a_version, self._database, user_hash, model
                ):
                    await self._loop.publish_soon(model)
            for stream, filters in (await self._places(user_hash)).items():
                for subject_filter in filters:
                    late = await self._bus.purge(stream, subject_filter)
                    purged, left = purged + late, left + late
            # By the clock of the events: what the bus stored before this never comes in.
            now = (await self._bus.usage(FEEDBACK)).time.timestamp()
            gone = await asyncio.to_thread(forget_user.forget_user, self._database, user_hash, now)
        lineage = await asyncio.to_thread(downstream.of_user, self._database, user_hash)
        logger.info("forgot a user: %d rollouts, %d feedback", gone.rollouts, gone.feedback)
        return learner_pb2.ForgetUserResponse(
            rollouts_removed=gone.rollouts,
            feedback_removed=gone.feedback,
            events_purged=purged,
            events_left_on_disk=left,
            policy_versions=lineage.policy.direct,
            descended_versions=lineage.policy.descended,
            reward_model_versions=lineage.reward_model.direct,
            rebuild_from=lineage.rebuild_from,
        )

    async def _places(self, user_hash: str) -> dict[str, list[str]]:
        """Return filters for a user's events in each stream, and for others' on their answers."""
        places = {stream: [subject_filter] for stream, subject_filter in of_user(user_hash)}
        others = await asyncio.to_thread(forget_user.given_by_others, self._database, user_hash)
        # What was imported was never an event, and its id may be no part of a subject.
        places[FEEDBACK] += [feedback_with_id(each) for each in others if TOKEN.fullmatch(each)]
        return places
