"""A canary from its start to its verdict: routed, watched, then promoted, held or rolled back.

Its state is in the ledger, so a restart continues where it was, and everything it does to the
routing table and the release is safe to repeat. The next `tick` retries what could not be reached.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from tuneloop import wire
from tuneloop.bus import Bus
from tuneloop.bus.subjects import canary_policy_key
from tuneloop.errors import FailedPrecondition, TuneloopError
from tuneloop.host import steady_time
from tuneloop.learner import metrics, trace_links
from tuneloop.learner.ledger.accounting import canaries, versions
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.reports import canary_traffic
from tuneloop.learner.release.canary import comparison
from tuneloop.learner.release.canary.comparison import ArmComparison, Figure
from tuneloop.learner.release.canary.settings import CanarySettings
from tuneloop.learner.release.canary.state import CanaryState, CanaryVerdict
from tuneloop.learner.samples import ModelRole
from tuneloop.policies import CanaryRoute, ReleaseState, ServedPolicy

logger = logging.getLogger("tuneloop.learner.release")

LOOK_SECONDS = 1.0
"""The shortest time between two checks of the traffic."""
LOOK_SHARE = 20
"""Checks take at most one in this many seconds."""


class VersionRelease(Protocol):
    """Makes versions stable, or quarantines them."""

    async def stable(self, model: str) -> int:
        """Return the version that serves; raises `Unavailable`."""
        ...

    async def promote(self, version: int, actor: str) -> int:
        """Make a version serve all users."""
        ...

    async def quarantine(
        self,
        version: int,
        reason: str,
        numbers: Mapping[str, Any] | None = None,
        *,
        actor: str = "learner",
    ) -> None:
        """Refuse a version for good."""
        ...


class ServingReplica(Protocol):
    """A generation replica that says what it serves."""

    async def policy(self) -> ServedPolicy:
        """Return what it serves, and how its answers ended; raises `TuneloopError`."""
        ...


class CanaryController:
    """At most one version at a time, on trial."""

    def __init__(
        self,
        *,
        policy: str,
        bus: Bus,
        database: Database,
        release: VersionRelease,
        generation: Sequence[ServingReplica],
        settings: CanarySettings,
        clock: Callable[[], float] = steady_time,
    ) -> None:
        self._policy = policy
        self._bus = bus
        self._database = database
        self._release = release
        self._generation = generation
        self._settings = settings
        self._clock = clock
        self._lock = asyncio.Lock()
        self._next_look = 0.0
        kept = canaries.load_state(database)
        self._state = None if kept is None else CanaryState.from_json(kept)
        self._show_share()

    @property
    def version(self) -> int | None:
        """The version on trial."""
        return None if self._state is None else self._state.version

    def start(self, version: int) -> None:
        """Try a stored version on a share of the users; the next `tick` routes it.

        Raises `FailedPrecondition` while another is on trial.
        """
        if self._state is not None:
            raise FailedPrecondition(f"version {self._state.version} is the canary already")
        state = CanaryState(
            version=version,
            share=self._settings.share,
            salt=f"{self._policy}-{version}",
            started=self._clock(),
        )
        canaries.begin_canary(
            self._database,
            version,
            share=state.share,
            state=state.to_json(),
            now=state.started,
        )
        self._state = state
        self._next_look = 0.0
        self._show_share()
        logger.info("version %d is the canary for %.0f%% of the users", version, 100 * state.share)

    async def stop(self, reason: str) -> None:
        """End the trial without a verdict; its users go back to the stable version.

        Raises `Unavailable` or `Conflict` if the routing table cannot be changed; the next `tick`
        retries.
        """
        async with self._lock:
            if self._state is None:
                return
            await self._decide(
                self._state, CanaryVerdict(outcome="stop", reason=reason, numbers={})
            )

    async def tick(self) -> None:
        """Advance the trial: route, look, decide, carry out.

        Errors that the next tick may not meet are only logged.
        """
        async with self._lock:
            state = self._state
            if state is None:
                return
            try:
                await self._advance_trial(state)
            except TuneloopError as error:
                logger.warning("the canary waits: %s", error.message)

    async def _advance_trial(self, state: CanaryState) -> None:
        if state.verdict is not None:
            await self._carry_out(state, state.verdict)
            return
        gone = await self._given_up_by_others(state)
        if gone:
            await self._decide(state, CanaryVerdict(outcome="stop", reason=gone, numbers={}))
            return
        await self._set_route(self._route(state))
        if self._clock() < self._next_look:
            return
        began = time.monotonic()
        await self._watch_generation(state)
        verdict = await self._look(state)
        took = time.monotonic() - began
        self._next_look = self._clock() + max(LOOK_SECONDS, LOOK_SHARE * took)
        if verdict is not None:
            await self._decide(state, verdict)

    async def _given_up_by_others(self, state: CanaryState) -> str:
        """Return why there is nothing left to decide; empty while there is."""
        stable = await self._release.stable(ModelRole.POLICY)
        if state.stable is None:
            state.stable = stable
            await asyncio.to_thread(canaries.save_state, self._database, state.to_json())
        if stable != state.stable:
            return f"version {stable} was made stable meanwhile"
        found = await asyncio.to_thread(
            versions.get_version, self._database, ModelRole.POLICY, state.version
        )
        if found.state is not ReleaseState.CANARY:
            return f"it became {found.state.value} meanwhile"
        return ""

    def _route(self, state: CanaryState) -> CanaryRoute:
        found = versions.get_version(self._database, ModelRole.POLICY, state.version)
        # So that generation's loading belongs to the trace in which the version was made.
        made = trace_links.span_of_version(ModelRole.POLICY, state.version)
        weights = replace(found.reference, traceparent=made)
        return CanaryRoute(weights=weights, share=state.share, salt=state.salt)

    async def _set_route(self, route: CanaryRoute | None) -> None:
        key, value = canary_policy_key(self._policy), wire.encode_canary(route, self._policy)
        entry = await self._bus.routing(key)
        if entry is None and route is None:
            return
        if entry is None or entry.value != value:
            revision = None if entry is None else entry.revision
            await self._bus.set_routing(key, value, revision=revision)

    async def _watch_generation(self, state: CanaryState) -> None:
        """Count how answers ended, and note when the canary could first be served."""
        loaded = grown = False
        for replica in self._generation:
            try:
                policy = await replica.policy()
            except TuneloopError as error:
                logger.info("generation does not tell how answers ended: %s", error.message)
                continue
            loaded |= policy.loaded_canary == state.version
            grown |= state.errors.add_counts(policy, canary=state.version, stable=state.stable or 0)
        if state.counted_from is None and loaded:
            state.counted_from = self._clock()
            grown = True
        if grown:
            await asyncio.to_thread(canaries.save_state, self._database, state.to_json())

    async def _look(self, state: CanaryState) -> CanaryVerdict | None:
        """Compare the arms; the verdict, if it can be given."""
        figures: dict[Figure, ArmComparison] = {}
        if state.counted_from is not None:
            figures = await asyncio.to_thread(self._figures, state, state.counted_from)
            _show(figures)
        numbers = {
            "stable_version": state.stable,
            "share": state.share,
            "seconds": round(self._clock() - state.started, 1),
            **comparison.as_numbers(figures),
        }
        verdict = comparison.judge(figures, self._settings, numbers)
        if verdict is not None or numbers["seconds"] < self._settings.deadline_seconds:
            return verdict
        if not figures:
            reason = "no replica could load it before the deadline"
            return CanaryVerdict(outcome="hold", reason=reason, numbers=numbers)
        return CanaryVerdict(
            outcome=self._settings.deadline_action,
            reason="the deadline came before the traffic could decide",
            numbers=numbers,
        )

    def _figures(self, state: CanaryState, since: float) -> dict[Figure, ArmComparison]:
        stable = state.stable or 0
        both = (state.version, stable)
        name, metric = self._settings.metric, None
        if name:
            metric = canary_traffic.measured(
                self._database, name, canary=state.version, stable=stable, since=since
            )
        return comparison.compare(
            self._route(state),
            thumbs=canary_traffic.thumbs(self._database, both, since),
            rewards=canary_traffic.rewards(self._database, both, since),
            earlier_rewards=canary_traffic.earlier_rewards(self._database, stable, since),
            errors=state.errors,
            alpha=self._settings.alpha,
            metric=metric,
            higher_is_better=self._settings.higher_is_better,
        )

    async def _decide(self, state: CanaryState, verdict: CanaryVerdict) -> None:
        """Write the verdict down for good, then carry it out."""
        if state.verdict is None:
            state.verdict = verdict
            await asyncio.to_thread(
                canaries.save_verdict,
                self._database,
                state.version,
                outcome=verdict.outcome,
                reason=verdict.reason,
                numbers=verdict.numbers,
                state=state.to_json(),
                now=self._clock(),
            )
            logger.info("canary %d: %s: %s", state.version, verdict.outcome, verdict.reason)
        await self._carry_out(state, state.verdict)

    async def _carry_out(self, state: CanaryState, verdict: CanaryVerdict) -> None:
        """Do what was decided; every part may have been done before."""
        try:
            if verdict.outcome == "promote" and await self._release.stable(ModelRole.POLICY) == (
                state.stable
            ):
                await self._release.promote(state.version, canaries.ACTOR)
            # Its users leave a bad version before anything else is done about it.
            await self._set_route(None)
            found = versions.get_version(self._database, ModelRole.POLICY, state.version)
            if verdict.outcome == "roll_back" and found.state is not ReleaseState.QUARANTINED:
                await self._release.quarantine(
                    state.version, verdict.reason, verdict.numbers, actor=canaries.ACTOR
                )
        except FailedPrecondition as error:
            logger.error("canary %d: %s: %s", state.version, verdict.outcome, error.message)
            await self._set_route(None)
            await asyncio.to_thread(
                canaries.record_failed_verdict,
                self._database,
                state.version,
                outcome="stop",
                reason=f"{verdict.outcome} refused: {error.message}",
                now=self._clock(),
            )
        await asyncio.to_thread(canaries.end_canary, self._database, state.version)
        self._state = None
        self._show_share()

    def _show_share(self) -> None:
        metrics.canary_version.set(0 if self._state is None else self._state.version)
        metrics.canary_share.set(0.0 if self._state is None else self._state.share)
        if self._state is None:
            metrics.canary_difference.clear()
            metrics.canary_observations.clear()


def _show(figures: Mapping[Figure, ArmComparison]) -> None:
    for name, found in figures.items():
        metrics.canary_difference.labels(name, "low").set(found.low)
        metrics.canary_difference.labels(name, "high").set(found.high)
        metrics.canary_observations.labels(name, "canary").set(found.canary)
        metrics.canary_observations.labels(name, "stable").set(found.stable)
