"""Forget a user or a session, in the ledger and on the bus, while no step runs.

The subjects of events name users and feedback, not sessions: so the rollouts of a session stay in
their stream until that drops them by age, and only its feedback is erased there.
"""

import asyncio
import logging
import time
from typing import Any

from tuneloop.bus import Bus
from tuneloop.bus.subjects import FEEDBACK, TOKEN, feedback_with_id, of_user, token
from tuneloop.errors import InvalidRequest
from tuneloop.learner.ledger.accounting import downstream, forget_user
from tuneloop.learner.ledger.accounting.forget_user import PersonalData
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.loop import Loop
from tuneloop.rollouts import SESSION_ID
from tuneloop.v1 import learner_pb2

OVERWRITE_SECONDS = 120.0
"""How long events are overwritten; enough for some 8,000."""

logger = logging.getLogger("tuneloop.learner.service")


class ForgetUser:
    """Deletes the rows and events of a user or a session, and says what had learned from them."""

    def __init__(self, database: Database, bus: Bus, loop: Loop) -> None:
        self._database = database
        self._bus = bus
        self._loop = loop

    async def forget_user(self, user: str) -> learner_pb2.ForgetUserResponse:
        """Forget a user by their hash; safe to repeat. Raises `InvalidRequest`, `Unavailable`."""
        data = PersonalData(user_hash=token(user, "user_hash"))
        return learner_pb2.ForgetUserResponse(**await self._forget(data))

    async def forget_session(
        self, tenant: str, session_id: str
    ) -> learner_pb2.ForgetSessionResponse:
        """Forget a session of a tenant, likewise."""
        if SESSION_ID.fullmatch(session_id) is None:
            raise InvalidRequest("session_id: no session is called that", param="session_id")
        data = PersonalData(tenant=token(tenant, "tenant"), session_id=session_id)
        return learner_pb2.ForgetSessionResponse(**await self._forget(data))

    async def _forget(self, data: PersonalData) -> dict[str, Any]:
        """Delete the events first, so that none comes again, then the rows; return what was.

        Steps that no version has yet become a version, so that every version that learned from the
        data has a number.
        """
        # Before training pauses: it takes long where there are many.
        end, purged, left = time.monotonic() + OVERWRITE_SECONDS, 0, 0
        for stream, filters in (await self._places(data)).items():
            seconds = max(0.0, end - time.monotonic())
            erased = await self._bus.erase(stream, filters, seconds=seconds)
            purged, left = purged + erased.overwritten + erased.left, left + erased.left
        async with self._loop.paused_turns():
            for model in downstream.MODELS:
                if await asyncio.to_thread(
                    forget_user.used_since_a_version, self._database, data, model
                ):
                    await self._loop.publish_soon(model)
            for stream, filters in (await self._places(data)).items():
                for subject_filter in filters:
                    late = await self._bus.purge(stream, subject_filter)
                    purged, left = purged + late, left + late
            # By the clock of the events: what the bus stored before this never comes in.
            now = (await self._bus.usage(FEEDBACK)).time.timestamp()
            gone = await asyncio.to_thread(forget_user.forget, self._database, data, now)
        lineage = await asyncio.to_thread(downstream.of_data, self._database, data)
        what = "user" if data.user_hash else "session"
        logger.info("forgot a %s: %d rollouts, %d feedback", what, gone.rollouts, gone.feedback)
        return {
            "rollouts_removed": gone.rollouts,
            "feedback_removed": gone.feedback,
            "events_purged": purged,
            "events_left_on_disk": left,
            "policy_versions": lineage.policy.direct,
            "descended_versions": lineage.policy.descended,
            "reward_model_versions": lineage.reward_model.direct,
            "rebuild_from": lineage.rebuild_from,
        }

    async def _places(self, data: PersonalData) -> dict[str, list[str]]:
        """Return filters for the events in each stream: a user's, and feedback about the data."""
        of_them = of_user(data.user_hash) if data.user_hash else []
        places = {stream: [subject_filter] for stream, subject_filter in of_them}
        others = await asyncio.to_thread(forget_user.feedback_to_erase, self._database, data)
        # What was imported was never an event, and its id may be no part of a subject.
        found = [feedback_with_id(each) for each in others if TOKEN.fullmatch(each)]
        if found:
            places.setdefault(FEEDBACK, []).extend(found)
        return places
