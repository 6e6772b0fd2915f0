"""The gate decides about candidates, one at a time, the newest first.

A candidate is examined, and passes or is quarantined. While generation or reward cannot be reached
it is held and tried again: it never passes by default, and is never refused because a service is
down. Every decision is in the ledger before it is carried out, so that a restart continues there.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

from tuneloop import tracing
from tuneloop.backoff import Backoff
from tuneloop.errors import TuneloopError
from tuneloop.host import steady_time
from tuneloop.learner import metrics, trace_links
from tuneloop.learner.ledger.accounting import decisions, versions
from tuneloop.learner.ledger.accounting.versions import Version
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.release.gate.settings import GateSettings
from tuneloop.learner.release.gate.verdict import GateVerdict
from tuneloop.learner.release.promotion import Promotion
from tuneloop.learner.samples import ModelRole
from tuneloop.policies import ReleaseState

logger = logging.getLogger("tuneloop.learner.release")

POLL_SECONDS = 1.0
FIRST_RETRY_SECONDS = 2.0
LAST_RETRY_SECONDS = 30.0
GATE: Final = "gate"


class Evaluator(Protocol):
    """See `tuneloop.learner.release.gate.evaluator`."""

    async def examine(self, candidate: Version, stable: Version | None) -> GateVerdict:
        """Judge a candidate; raises `TuneloopError` if a service cannot be reached."""
        ...


class CanaryTrial(Protocol):
    """Tries a version that passed on a share of the users; see `release.canary`."""

    @property
    def version(self) -> int | None:
        """The version being tried."""
        ...

    def start(self, version: int) -> None:
        """Begin to try a version."""
        ...

    async def tick(self) -> None:
        """Check the traffic, and decide when it is time."""
        ...

    async def stop(self, reason: str) -> None:
        """End the trial without a verdict."""
        ...


class GateController:
    """Decides about candidates until cancelled."""

    def __init__(
        self,
        *,
        database: Database,
        release: Promotion,
        evaluator: Evaluator,
        settings: GateSettings,
        canary: CanaryTrial | None,
        pause: Callable[[], None],
        clock: Callable[[], float] = steady_time,
    ) -> None:
        """`pause` stops learning when one candidate after another fails."""
        self.waiting = ""
        """What it waits for, in words; empty if nothing."""
        self._database = database
        self._release = release
        self._evaluator = evaluator
        self._settings = settings
        self._canary = canary
        self._pause = pause
        self._clock = clock
        self._held: int | None = None
        """The candidate that could not be examined."""
        self._retry_time = 0.0
        self._backoff = Backoff(FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS)

    async def run(self) -> None:
        """Decide until cancelled; services that are down are asked again later."""
        while True:
            try:
                await self.turn()
            except TuneloopError as error:
                logger.warning("no decision could be carried out: %s", error.message)
            await asyncio.sleep(POLL_SECONDS)

    async def turn(self) -> None:
        """Advance the canary, and decide about the newest candidate."""
        if self._canary is not None:
            await self._look_after(self._canary)
        candidate = await asyncio.to_thread(self._next)
        if candidate is None:
            self._clear()
            return
        if self._canary is not None and self._canary.version is not None:
            self.waiting = f"the canary, version {self._canary.version}"
            return
        outcome = await asyncio.to_thread(self._outcome, candidate)
        if outcome is None and time.monotonic() >= self._retry_time:
            outcome = await self._examine(candidate)
        now = await asyncio.to_thread(
            versions.get_version, self._database, ModelRole.POLICY, candidate.version
        )
        if now.state is not ReleaseState.CANDIDATE:
            return  # a person was faster
        if outcome == "fail":
            await self._refuse(candidate)
        elif outcome == "pass":
            await self._let_pass(candidate)

    async def _look_after(self, canary: CanaryTrial) -> None:
        await canary.tick()
        if canary.version is None:
            return
        tried = await asyncio.to_thread(
            versions.get_version, self._database, ModelRole.POLICY, canary.version
        )
        if tried.state not in (ReleaseState.CANDIDATE, ReleaseState.CANARY):
            await canary.stop(f"version {tried.version} is {tried.state.value} meanwhile")
        elif hold := self._release.hold:
            await canary.stop(hold)

    def _next(self) -> Version | None:
        """Return the newest candidate, and retire the older ones."""
        waiting = versions.candidates(self._database)
        running = None if self._canary is None else self._canary.version
        waiting = [candidate for candidate in waiting if candidate.version != running]
        for older in waiting[1:]:
            self._release.supersede(older.version, waiting[0].version, GATE)
        if not waiting:
            return None
        stable = versions.stable_version(self._database, ModelRole.POLICY) or 0
        if waiting[0].version < stable:
            self._release.supersede(waiting[0].version, stable, GATE)
            return None
        return waiting[0]

    def _outcome(self, candidate: Version) -> str | None:
        """Return what the gate decided about it, or None."""
        return next(
            (
                decision.outcome
                for decision in reversed(
                    decisions.of_version(self._database, ModelRole.POLICY, candidate.version)
                )
                if decision.kind == GATE and decision.outcome in ("pass", "fail")
            ),
            None,
        )

    async def _examine(self, candidate: Version) -> str | None:
        """Have it judged; return None if it has to be tried again."""
        started = time.monotonic()
        self.waiting = f"the gate, which examines version {candidate.version}"
        try:
            number = await self._release.stable(ModelRole.POLICY)
            stable = None
            if number:
                stable = await asyncio.to_thread(
                    versions.get_version, self._database, ModelRole.POLICY, number
                )
            made = trace_links.span_of_version(ModelRole.POLICY, candidate.version)
            with tracing.span("gate", parent=made):
                verdict = await self._evaluator.examine(candidate, stable)
        except TuneloopError as error:
            self._hold(candidate, error)
            return None
        self._clear()
        metrics.gate_seconds.observe(time.monotonic() - started)
        outcome = "pass" if verdict.passed else "fail"
        await asyncio.to_thread(self._record, candidate, outcome, verdict)
        logger.info("version %d: %s: %s", candidate.version, outcome, verdict.reason)
        return outcome

    def _hold(self, candidate: Version, error: TuneloopError) -> None:
        self.waiting = f"the gate, which cannot examine version {candidate.version}: {error}"
        self._retry_time = time.monotonic() + self._backoff.next_delay()
        metrics.gate_held.set(1)
        if self._held == candidate.version:
            return
        self._held = candidate.version
        logger.warning("version %d waits: %s", candidate.version, error.message)
        decisions.record_decision(
            self._database,
            version=candidate.version,
            kind=GATE,
            outcome="hold",
            reason=f"cannot be examined yet: {error.message}",
            actor=GATE,
            now=self._clock(),
        )

    def _clear(self) -> None:
        self.waiting = ""
        self._held = None
        self._retry_time = 0.0
        self._backoff.reset()
        metrics.gate_held.set(0)

    def _record(self, candidate: Version, outcome: str, verdict: GateVerdict) -> None:
        decisions.record_decision(
            self._database,
            version=candidate.version,
            kind=GATE,
            outcome=outcome,
            numbers=verdict.numbers,
            reason=verdict.reason,
            actor=GATE,
            now=self._clock(),
        )

    async def _refuse(self, candidate: Version) -> None:
        reason = await asyncio.to_thread(self._reason, candidate)
        await self._release.quarantine(candidate.version, reason, actor=GATE)
        latest = await asyncio.to_thread(
            decisions.newest,
            self._database,
            ModelRole.POLICY,
            GATE,
            10 * self._settings.pause_after,
        )
        decided = [d.outcome for d in latest if d.outcome in ("pass", "fail")]
        in_a_row = decided[: self._settings.pause_after]
        if in_a_row == ["fail"] * self._settings.pause_after:
            self._pause()
            decisions.record_decision(
                self._database,
                version=candidate.version,
                kind="pause",
                outcome="paused",
                reason=f"{self._settings.pause_after} candidates failed the gate in a row",
                actor=GATE,
                now=self._clock(),
            )

    def _reason(self, candidate: Version) -> str:
        found = decisions.of_version(self._database, ModelRole.POLICY, candidate.version)
        return next(d.reason for d in reversed(found) if d.kind == GATE and d.outcome == "fail")

    async def _let_pass(self, candidate: Version) -> None:
        if hold := self._release.hold:
            self.waiting = f"a promotion of version {candidate.version}, which passed ({hold})"
        elif self._canary is not None:
            self._canary.start(candidate.version)
        else:
            await self._release.promote(candidate.version, GATE)
