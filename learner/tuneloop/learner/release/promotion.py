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
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

from tuneloop.bus import Bus
from tuneloop.errors import Conflict, FailedPrecondition, InvalidRequest, NotFound
from tuneloop.host import steady_time
from tuneloop.learner import metrics
from tuneloop.learner.ledger.accounting import lineage, promotions, versions
from tuneloop.learner.ledger.accounting.promotions import PromotionAction, QuarantineRange
from tuneloop.learner.ledger.accounting.quarantine import Kind
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.release.routing_table import NamedVersion, RoutingTable
from tuneloop.learner.samples import ModelRole
from tuneloop.policies import ReleaseState, WeightsReference

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
        clock: Callable[[], float] = steady_time,
    ) -> None:
        """`alarm` returns the name of an alarm that holds releases, or an empty string."""
        self._table = RoutingTable(bus, policy)
        self._database = database
        self._gate = gate
        self._alarm = alarm
        self._clock = clock
        self._changing = asyncio.Lock()
        """Held from a change of the routing table until the ledger has it."""

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
        return (await self._table.named(model)).version

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
            async with self._changing:
                named = await self._table.named(model)
                if named.version > version:
                    return False
                if named.version < version and not await self._table.replace(
                    model, named, found.reference
                ):
                    continue
                self._record(
                    model, version, previous=named.version, action="publish", actor="learner"
                )
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
        """Make the routing table name what the ledger holds for stable; return whether it had to.

        The table may be lost, or name what a restored ledger does not know. A version of this
        ledger that the table names is stable, even if the learner ended before it noted that.
        Raises `Unavailable`.
        """
        restored = False
        for model in ModelRole:
            async with self._changing:
                restored |= await self._reconcile(model)
        return restored

    async def _reconcile(self, model: str) -> bool:
        named = await self._table.named(model)
        stable = await asyncio.to_thread(versions.stable_version, self._database, model) or 0
        target = await asyncio.to_thread(self._reference_of, model, stable)
        if named.is_version(target):
            return False
        if await asyncio.to_thread(self._was_being_promoted, model, named):
            actor = self.held_by or "unknown"
            self._record(model, named.version, previous=stable, action="promote", actor=actor)
            return True
        if not await self._table.replace(model, named, target):
            return False
        logger.warning(
            "%s: the routing table named version %d, with weights that are not stable by the "
            "ledger; version %d serves, as it was before",
            model,
            named.version,
            stable,
        )
        return True

    def _was_being_promoted(self, model: str, named: NamedVersion) -> bool:
        """Return whether the table names what somebody made stable as the learner ended.

        Otherwise the table or the ledger was lost or is an old one. What was retired or quarantined
        since does not come back.
        """
        if named.revision is None:
            return False
        if named.version == 0:
            return bool(self.held_by)
        try:
            found = versions.get_version(self._database, model, named.version)
        except NotFound:
            return False
        may_be = {ReleaseState.CANDIDATE, ReleaseState.CANARY}
        if self.held_by:
            may_be.add(ReleaseState.RETIRED)
        return found.state in may_be and named.is_version(found.reference)

    def _reference_of(self, model: str, version: int) -> WeightsReference:
        """Return where a stored version is. Raises `NotFound`, `FailedPrecondition`."""
        if version == 0:
            return self._table.base_model(model)
        found = versions.get_version(self._database, model, version)
        if found.stage == "saved":
            raise FailedPrecondition(f"version {version} is not in the weight store yet")
        if not found.uri:
            raise FailedPrecondition(
                f"the weights of version {version} were deleted; "
                "TUNELOOP_LEARNER_RETENTION__VERSIONS says how many are kept"
            )
        return found.reference

    async def keep_routing(self) -> None:
        """Restore the routing table when it has to be, until cancelled. Raises `Unavailable`."""
        while True:
            await self.restore_routing()
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
        target = self._reference_of(ModelRole.POLICY, version)
        for _ in range(ATTEMPTS):
            async with self._changing:
                named = await self._table.named(ModelRole.POLICY)
                if await self._table.replace(ModelRole.POLICY, named, target):
                    self._record(
                        ModelRole.POLICY,
                        version,
                        previous=named.version,
                        action=action,
                        actor=actor or "unknown",
                        quarantined=quarantined,
                    )
                    return
        raise Conflict("the routing table keeps changing; try again", retry_after=1.0)

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
