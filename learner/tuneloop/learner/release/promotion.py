"""Which version is served: the routing table's entry, changed by compare-and-set, and who did it.

Generation and reward follow the routing table; the ledger keeps its history. With the gate `off`
every published version becomes stable at once; otherwise it is a candidate until the gate, a canary
or a person promotes it. After a person rolled back, nothing is promoted automatically until a
person promotes something: the loop never undoes a person's decision.

A version that is rolled back or refused is quarantined. The loop puts back what the learner had
learned with it (see `ledger.accounting.quarantine`).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from tuneloop.bus import Bus, RoutingEntry
from tuneloop.bus.subjects import reward_model_key, stable_policy_key
from tuneloop.errors import Conflict, FailedPrecondition, InvalidRequest, Unavailable
from tuneloop.learner import metrics, trace_links
from tuneloop.learner.ledger.accounting import lineage, promotions, versions
from tuneloop.learner.ledger.accounting.promotions import PromotionAction, QuarantineRange
from tuneloop.learner.ledger.accounting.quarantine import Kind
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.samples import ModelRole
from tuneloop.policies import ReleaseState, WeightsReference
from tuneloop.wire import decode_routing, encode_routing

logger = logging.getLogger("tuneloop.learner.release")

Gate: TypeAlias = Literal["off", "manual", "gate", "gate+canary"]

ATTEMPTS = 5
ROUTING_SECONDS = 5.0
"""How often the routing table is compared with the ledger."""
AUTOMATIC = frozenset({"gate", "canary", "learner"})
"""Actors that are not people."""
HELD = "release_held_by"
"""The ledger's fact that says who rolled back; empty while versions are promoted normally."""


class Promotion:
    """Makes versions stable, for the policy and for its reward model."""

    def __init__(
        self,
        *,
        policy: str,
        bus: Bus,
        database: Database,
        gate: Gate,
        alarm: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`alarm` returns the name of an alarm that holds releases, or an empty string."""
        self._keys: dict[str, str] = {
            ModelRole.POLICY: stable_policy_key(policy),
            ModelRole.REWARD_MODEL: reward_model_key(policy),
        }
        self._names: dict[str, str] = {"policy": policy, "reward_model": f"{policy}-reward-model"}
        self._bus = bus
        self._database = database
        self._gate = gate
        self._alarm = alarm
        self._clock = clock

    @property
    def held_by(self) -> str:
        """Who rolled back and has not promoted since; empty if nobody."""
        return self._database.fact(HELD) or ""

    @property
    def hold(self) -> str:
        """Why nothing is promoted automatically, in words; empty if it is."""
        if held_by := self.held_by:
            return f"{held_by} rolled back"
        alarm = self._alarm()
        return f"alarm: {alarm}" if alarm else ""

    async def stable(self, model: str) -> int:
        """Return the version the routing table names; 0 if none. Raises `Unavailable`."""
        return _version_of(await self._bus.routing(self._keys[model]))

    async def offer(self, model: str, version: int) -> bool:
        """Make a newly published version stable if nobody has to decide; return whether it is.

        Reward models answer no users, so they need no decision.
        """
        if model == ModelRole.POLICY and (self._gate != "off" or self.hold):
            return False
        found = versions.get_version(self._database, model, version)
        if found.state is not ReleaseState.CANDIDATE:
            # Stable already, or its line was abandoned before it was published.
            return found.state is ReleaseState.STABLE
        for _ in range(ATTEMPTS):
            entry = await self._bus.routing(self._keys[model])
            stable = _version_of(entry)
            if stable > version:
                return False
            if stable < version and not await self._set(model, found.reference, entry):
                continue
            self._record(model, version, previous=stable, action="publish", actor="learner")
            return True
        raise Conflict("the routing table keeps changing; try again", retry_after=1.0)

    async def promote(self, version: int, actor: str) -> int:
        """Make a stored version of the policy stable. Raises `NotFound`, `FailedPrecondition`.

        A person's promotion lifts the hold of an earlier roll-back; other promotions respect it.
        """
        if actor in AUTOMATIC and (hold := self.hold):
            raise FailedPrecondition(f"{hold}; only a person promotes now")
        await self._move(version, "promote", actor)
        if actor not in AUTOMATIC:
            self._database.set_fact(HELD, "")
        return version

    async def roll_back(self, version: int | None, actor: str) -> int:
        """Go back to an earlier version of the policy, by default the last good one.

        The versions after it are quarantined, and nothing is promoted automatically until a person
        promotes. Raises `NotFound`, and `FailedPrecondition` if there is nothing to go back to.
        """
        stable = await self.stable(ModelRole.POLICY)
        if stable == 0:
            raise FailedPrecondition("version 0 is served; there is nothing to go back to")
        if version is None:
            version = versions.good_before(self._database, stable)
        if version >= stable:
            raise InvalidRequest(
                f"policy_version: {version} is not before {stable}, the stable one",
                param="policy_version",
            )
        self._check_not_quarantined(version)
        self._database.set_fact(HELD, actor or "unknown")
        await self._take_back(version + 1, stable, to=version, actor=actor or "unknown")
        return version

    async def quarantine(
        self,
        version: int,
        reason: str,
        numbers: Mapping[str, Any] | None = None,
        *,
        actor: str = "learner",
        kind: Kind = "quarantine",
    ) -> None:
        """Refuse a version of the policy for good, and all that grew from it.

        If one of them serves, the last good version before them replaces it. Raises `Unavailable`
        if the routing table has to be changed and cannot be.
        """
        versions.get_version(self._database, ModelRole.POLICY, version)
        stable = await self.stable(ModelRole.POLICY)
        line = {stable, *lineage.ancestors(self._database, ModelRole.POLICY, stable)}
        serves = version in line
        await self._take_back(
            version,
            stable if serves else version,
            to=versions.good_before(self._database, version) if serves else None,
            actor=actor,
            reason=reason,
            numbers=numbers or {},
            kind=kind,
        )

    async def restore_routing(self) -> bool:
        """Name the stable versions again where the routing table lost them; return whether it had.

        Until then whatever starts serves the base model. Raises `Unavailable`.
        """
        restored = False
        for model, key in self._keys.items():
            stable = await asyncio.to_thread(versions.stable_version, self._database, model)
            if stable is None or await self._bus.routing(key) is not None:
                continue
            found = await asyncio.to_thread(versions.get_version, self._database, model, stable)
            if await self._set(model, found.reference, None):
                logger.warning(
                    "%s: the routing table had lost version %d, which is stable", model, stable
                )
                restored = True
        return restored

    async def keep_routing(self) -> None:
        """Restore the routing table whenever it was lost, until cancelled."""
        while True:
            try:
                await self.restore_routing()
            except Unavailable as error:
                logger.debug("the routing table cannot be looked at: %s", error)
            await asyncio.sleep(ROUTING_SECONDS)

    def supersede(self, version: int, by: int, actor: str) -> None:
        """Retire a candidate that was not decided about when a newer one came."""
        promotions.supersede(self._database, version, by, actor, self._clock())
        logger.info("version %d is superseded by version %d", version, by)

    async def _take_back(
        self,
        first: int,
        last: int,
        *,
        to: int | None,
        actor: str,
        reason: str = "",
        numbers: Mapping[str, Any] | None = None,
        kind: Kind = "quarantine",
    ) -> None:
        """Quarantine versions `first` to `last`, and serve version `to` if given."""
        quarantined = QuarantineRange(
            first=first,
            last=last,
            reason=reason or f"{actor} rolled back to version {to}",
            numbers=numbers or {},
            actor=actor,
            kind=kind,
        )
        if to is not None:
            await self._move(to, "roll back", actor, quarantined)
        else:
            promotions.quarantine_versions(self._database, quarantined, self._clock())
        metrics.versions_quarantined.inc(last - first + 1)
        logger.warning("version %d is quarantined by %s: %s", last, actor, reason)

    def _check_not_quarantined(self, version: int) -> None:
        if version == 0:
            return
        found = versions.get_version(self._database, ModelRole.POLICY, version)
        if found.state is ReleaseState.QUARANTINED:
            raise FailedPrecondition(
                f"version {version} is quarantined; promote it if it is to serve all the same"
            )

    async def _move(
        self,
        version: int,
        action: Literal["promote", "roll back"],
        actor: str,
        quarantined: QuarantineRange | None = None,
    ) -> None:
        target = WeightsReference(
            policy=self._names[ModelRole.POLICY], policy_version=0, uri="", manifest_sha256=""
        )
        if version != 0:
            found = versions.get_version(self._database, ModelRole.POLICY, version)
            if found.stage == "saved":
                raise FailedPrecondition(f"version {version} is not in the weight store yet")
            target = found.reference
        for _ in range(ATTEMPTS):
            entry = await self._bus.routing(self._keys[ModelRole.POLICY])
            if await self._set(ModelRole.POLICY, target, entry):
                self._record(
                    ModelRole.POLICY,
                    version,
                    previous=_version_of(entry),
                    action=action,
                    actor=actor or "unknown",
                    quarantined=quarantined,
                )
                return
        raise Conflict("the routing table keeps changing; try again", retry_after=1.0)

    async def _set(self, model: str, target: WeightsReference, entry: RoutingEntry | None) -> bool:
        # So that generation's loading belongs to the trace in which the version was made.
        made = trace_links.span_of_version(model, target.policy_version)
        value = encode_routing(replace(target, traceparent=made))
        revision = None if entry is None else entry.revision
        try:
            await self._bus.set_routing(self._keys[model], value, revision=revision)
        except Conflict:
            return False
        return True

    def _record(
        self,
        model: str,
        version: int,
        *,
        previous: int,
        action: PromotionAction,
        actor: str,
        quarantined: QuarantineRange | None = None,
    ) -> None:
        promotions.record_promotion(
            self._database,
            model,
            version,
            previous=previous,
            action=action,
            actor=actor,
            now=self._clock(),
            quarantined=quarantined,
        )
        logger.info("%s: version %d is stable (%s by %s)", model, version, action, actor)


def _version_of(entry: RoutingEntry | None) -> int:
    return 0 if entry is None else decode_routing(entry.value).policy_version
