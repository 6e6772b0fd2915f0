"""Rebuild: go back to an earlier version and train again from there, on the data that is left.

The versions after it are quarantined, without blame on what they learned from, and stop serving.
The learner continues from the checkpoint of the last version before them that served, or from the
base model if that is gone. The reward model is not rebuilt.
"""

import asyncio
from collections.abc import Callable

from tuneloop.bus.subjects import token
from tuneloop.errors import FailedPrecondition, InvalidRequest, NotFound
from tuneloop.host import steady_time
from tuneloop.learner.ledger.accounting import (
    downstream,
    forget_user,
    lineage,
    senders,
    versions,
)
from tuneloop.learner.ledger.accounting.forget_user import PersonalData
from tuneloop.learner.ledger.accounting.senders import Sender
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.loop import Loop
from tuneloop.learner.release.promotion import Promotion
from tuneloop.learner.samples import ModelRole
from tuneloop.v1 import learner_pb2


class Rebuild:
    """Takes the policy back to before a version, a user, an API key or a tenant."""

    def __init__(
        self,
        database: Database,
        release: Promotion,
        loop: Loop,
        *,
        clock: Callable[[], float] = steady_time,
    ) -> None:
        self._database = database
        self._release = release
        self._loop = loop
        self._clock = clock

    async def before_user(self, user: str, actor: str) -> learner_pb2.RebuildPolicyResponse:
        """Go back to the last version that had not learned from a user, by their hash.

        Raises `FailedPrecondition` if the current line has not learned from them.
        """
        user_hash = token(user, "before_user_hash")
        async with self._loop.paused_turns():
            if await asyncio.to_thread(
                forget_user.used_since_a_version,
                self._database,
                PersonalData(user_hash=user_hash),
                ModelRole.POLICY,
            ):
                await self._loop.publish_soon(ModelRole.POLICY)
            found = await asyncio.to_thread(downstream.of_user, self._database, user_hash)
            if found.rebuild_from is None:
                raise FailedPrecondition("what is trained on has not learned from this user")
            return await self._to(found.rebuild_from, actor)

    async def before_sender(self, sender: Sender, actor: str) -> learner_pb2.RebuildPolicyResponse:
        """Retract all feedback of a sender; go back to the last version that had not learned it.

        The head is kept if it has learned nothing from them. Safe to repeat: a crash in between
        leaves feedback retracted and the versions as they are. Raises `NotFound`.
        """
        async with self._loop.paused_turns():
            if (await asyncio.to_thread(senders.of_sender, self._database, sender)).feedback == 0:
                raise NotFound(
                    f"no feedback of the {sender} in the ledger: check the name, or give the id"
                )
            if await asyncio.to_thread(senders.used_since_a_version, self._database, sender):
                await self._loop.publish_soon(ModelRole.POLICY)
            retracted = await asyncio.to_thread(
                senders.retract_feedback, self._database, sender, self._clock()
            )
            found = await asyncio.to_thread(senders.of_sender, self._database, sender)
            if found.rebuild_from is None:
                head = versions.head(self._database, ModelRole.POLICY)
                newest = 0 if head is None else head.version
                return learner_pb2.RebuildPolicyResponse(
                    policy_version=newest, restored_version=newest, feedback_retracted=retracted
                )
            answer = await self._to(found.rebuild_from, actor)
            answer.feedback_retracted = retracted
            return answer

    async def to_version(self, version: int, actor: str) -> learner_pb2.RebuildPolicyResponse:
        """Go back to a version of the current line; raises `InvalidRequest` for another."""
        async with self._loop.paused_turns():
            return await self._to(version, actor)

    async def _to(self, version: int, actor: str) -> learner_pb2.RebuildPolicyResponse:
        after = await asyncio.to_thread(self._after, version)
        uses = forget_user.row_counts(self._database)["uses"]
        await self._release.quarantine(
            after[-1],
            f"rebuilt from version {version} by {actor or 'unknown'}",
            actor=actor or "unknown",
            kind="rebuild",
        )
        restored = await self._loop.rewind()
        return learner_pb2.RebuildPolicyResponse(
            policy_version=version,
            restored_version=restored,
            left_behind=after[::-1],
            samples_put_back=uses - forget_user.row_counts(self._database)["uses"],
        )

    def _after(self, version: int) -> list[int]:
        """Return the versions from `version` (excluded) to the current one, newest first."""
        head = versions.head(self._database, ModelRole.POLICY)
        newest = 0 if head is None else head.version
        line = [newest, *lineage.ancestors(self._database, ModelRole.POLICY, newest)]
        if version not in line[1:]:
            raise InvalidRequest(
                f"policy_version: {version} is not one that the present one, {newest}, grew from",
                param="policy_version",
            )
        return line[: line.index(version)]
