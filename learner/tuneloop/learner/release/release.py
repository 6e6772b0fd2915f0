"""Which version is served: the routing table's entry, changed by compare-and-set, and who did it.

The routing table is what generation and reward follow; the ledger keeps the history of it. With the
gate `off` every published version is made stable at once, until somebody rolls back: from then on
new versions stay candidates until one is promoted by hand, so that the loop never undoes a
person's decision.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from tuneloop.bus import Bus, RoutingEntry
from tuneloop.bus.subjects import reward_model_key, stable_policy_key
from tuneloop.errors import Conflict, FailedPrecondition, InvalidRequest
from tuneloop.learner import trail
from tuneloop.learner.ledger import versions
from tuneloop.learner.ledger.database import Database
from tuneloop.policies import WeightsReference
from tuneloop.v1 import generation_pb2
from tuneloop.wire import encode_routing, parse

logger = logging.getLogger("tuneloop.learner.release")

ATTEMPTS = 5
HELD = "release_held_by"
"""Fact of the ledger: who rolled back; empty when versions are released as they come."""


class Release:
    """Makes versions stable, for the policy and for its reward model."""

    def __init__(
        self,
        *,
        policy: str,
        bus: Bus,
        database: Database,
        gate: Literal["off", "manual"],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = {
            "policy": stable_policy_key(policy),
            "reward_model": reward_model_key(policy),
        }
        self._names = {"policy": policy, "reward_model": f"{policy}-reward-model"}
        self._bus = bus
        self._database = database
        self._gate = gate
        self._clock = clock

    @property
    def held_by(self) -> str:
        """Who rolled back and has not promoted since; empty when nobody."""
        return self._database.fact(HELD) or ""

    async def stable(self, model: str) -> int:
        """The version the routing table names; 0 when it names none. Raises `Unavailable`."""
        return _version_of(await self._bus.routing(self._keys[model]))

    async def offer(self, model: str, version: int) -> bool:
        """Make a just published version stable if the gate lets it; whether it is."""
        if model == "policy" and (self._gate == "manual" or self.held_by):
            return False
        found = versions.get_version(self._database, model, version)
        for _ in range(ATTEMPTS):
            entry = await self._bus.routing(self._keys[model])
            stable = _version_of(entry)
            if stable > version:
                return False
            if stable < version and not await self._set(model, found.reference, entry):
                continue
            self._record(model, version, stable, "publish", "learner")
            return True
        raise Conflict("the routing table keeps changing; try again", retry_after=1.0)

    async def promote(self, version: int, actor: str) -> int:
        """Make a stored version of the policy stable. Raises `NotFound`, `FailedPrecondition`."""
        await self._move(version, "promote", actor)
        self._database.set_fact(HELD, "")
        return version

    async def roll_back(self, version: int | None, actor: str) -> int:
        """Go back to an earlier version of the policy, by default the stable one's parent.

        Holds further releases until somebody promotes. Raises `NotFound`, `FailedPrecondition`
        when there is nothing to go back to.
        """
        stable = await self.stable("policy")
        if stable == 0:
            raise FailedPrecondition("version 0 is served; there is nothing to go back to")
        if version is None:
            version = versions.get_version(self._database, "policy", stable).parent
        if version >= stable:
            raise InvalidRequest(
                f"policy_version: {version} is not before {stable}, the stable one",
                param="policy_version",
            )
        self._database.set_fact(HELD, actor or "unknown")
        await self._move(version, "roll back", actor)
        return version

    async def _move(self, version: int, action: str, actor: str) -> None:
        target = WeightsReference(
            policy=self._names["policy"], policy_version=0, uri="", manifest_sha256=""
        )
        if version != 0:
            found = versions.get_version(self._database, "policy", version)
            if found.stage == "saved":
                raise FailedPrecondition(f"version {version} is not in the weight store yet")
            target = found.reference
        for _ in range(ATTEMPTS):
            entry = await self._bus.routing(self._keys["policy"])
            if await self._set("policy", target, entry):
                self._record("policy", version, _version_of(entry), action, actor or "unknown")
                return
        raise Conflict("the routing table keeps changing; try again", retry_after=1.0)

    async def _set(self, model: str, target: WeightsReference, entry: RoutingEntry | None) -> bool:
        # Generation's loading of it then belongs to the trace in which it was made.
        made = trail.of_version(model, target.policy_version)
        value = encode_routing(replace(target, traceparent=made))
        revision = None if entry is None else entry.revision
        try:
            await self._bus.set_routing(self._keys[model], value, revision=revision)
        except Conflict:
            return False
        return True

    def _record(self, model: str, version: int, previous: int, action: str, actor: str) -> None:
        versions.release(
            self._database,
            model,
            version,
            previous=previous,
            action=action,
            actor=actor,
            now=self._clock(),
        )
        logger.info("%s: version %d is stable (%s by %s)", model, version, action, actor)


def _version_of(entry: RoutingEntry | None) -> int:
    # Version 0 has no weights in the store, so this is not `wire.weights_from_proto`.
    if entry is None:
        return 0
    return int(parse(generation_pb2.WeightsReference, entry.value).policy_version)
