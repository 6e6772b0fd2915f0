"""Decides which version serves and which versions stay in memory, and swaps one for another.

Invariants: a version serves only after its manifest, files and shapes were checked and the engine
has loaded it; a request keeps the version it started with (LoRA), held by a lease; a version is
dropped only if no request holds it and no new one would get it. A version that is refused changes
nothing.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from tuneloop import tracing
from tuneloop.errors import FailedPrecondition, NotFound, TuneloopError, Unavailable, WeightsRefused
from tuneloop.generation import metrics
from tuneloop.generation.engine import Engine
from tuneloop.generation.swap.admission import check_fits, check_manifest
from tuneloop.generation.swap.lease import AdapterNumbers, Lease, Live
from tuneloop.generation.swap.resumption import Resumption, durations
from tuneloop.host import lower_thread_priority
from tuneloop.policies import (
    Activation,
    CanaryRoute,
    LoadedVersion,
    WeightsKind,
    WeightsReference,
)
from tuneloop.weights.manifest import Manifest
from tuneloop.weights.store import WeightStore

logger = logging.getLogger("tuneloop.generation")
T = TypeVar("T")

HEADROOM = 2
"""Adapters the engine can hold beyond `max_live_versions`, while old requests still run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """The outcome of making a version serve."""

    policy_version: int
    swap_seconds: float
    """From the notice to the switch."""
    pause_seconds: float
    """The part of it in which nothing could be sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapOptions:
    """The options of one policy's swaps."""

    policy: str
    replica: str
    base_model: Path
    max_live_versions: int
    max_lora_rank: int


class HotSwap:
    """The routing state of one policy in one replica."""

    def __init__(
        self,
        engine: Engine,
        store: WeightStore,
        options: SwapOptions,
        on_activated: Callable[[Activation], None],
    ) -> None:
        self.engine = engine
        self.store = store
        self.options = options
        self.on_activated = on_activated
        self.serving = 0
        self.canary: CanaryRoute | None = None
        """A share of the users gets it as soon as it is in memory."""
        self.activated_time = datetime.now(UTC)
        self.newest = 0
        self.live = {0: Live(loaded_time=self.activated_time, last_served=time.monotonic())}
        self.replaced: list[Live] = []
        """Weights whose number others have by now, while requests still hold them."""
        self.numbers = AdapterNumbers()
        self.resumption = Resumption()
        self.lock = asyncio.Lock()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.is_trimming = False
        self.checking = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="weights",
            initializer=lower_thread_priority,
        )
        metrics.policy_version.labels(options.policy).set(0)

    def lease(self, policy_version: int | None = None, *, route_by: str = "") -> Lease:
        """Lease the version asked for, or the one that `route_by` gets (empty: the stable one).

        Raises `NotFound` for a version that was asked for and is not loaded.
        """
        version = self.version_for(route_by) if policy_version is None else policy_version
        live = self.live.get(version)
        if live is None:
            loaded = ", ".join(str(v) for v in sorted(self.live))
            raise NotFound(
                f"version {version} of {self.options.policy} is not loaded; loaded: {loaded}",
                param="policy_version",
            )
        live.leases += 1
        live.last_served = time.monotonic()
        return Lease(self.release, version, live)

    def version_for(self, route_by: str) -> int:
        """Return the canary for a user in its share if it is in memory, else the served version."""
        route = self.canary
        if route is None or not route_by or not self.holds(route.weights):
            return self.serving
        arm, version = "stable", self.serving
        if route.takes(route_by):
            arm, version = "canary", route.weights.policy_version
        metrics.canary_requests.labels(arm).inc()
        return version

    def holds(self, reference: WeightsReference) -> bool:
        """Return whether these weights are in memory, and not others of the same number."""
        live = self.live.get(reference.policy_version)
        return live is not None and live.manifest_sha256 == reference.manifest_sha256

    def release(self, live: Live) -> None:
        """End a lease; full weights may have been replaced under it."""
        live.leases -= 1
        live.last_served = time.monotonic()
        beyond = len(self.adapters()) > self.options.max_live_versions
        if (beyond or live in self.replaced) and not self.is_trimming:
            self.is_trimming = True
            self.start_task(self.drop_idle_adapters())

    def loaded_versions(self) -> list[LoadedVersion]:
        """Return the versions in memory, oldest first."""
        return [
            LoadedVersion(policy_version=v, leases=live.leases, loaded_time=live.loaded_time)
            for v, live in sorted(self.live.items())
        ]

    def adapters(self) -> list[Live]:
        """Return what takes up room for an adapter in the engine."""
        return [*self.replaced, *(live for version, live in self.live.items() if version != 0)]

    async def activate(self, reference: WeightsReference, *, at_start: bool = False) -> Swap:
        """Make a version serve, loading it first if it is not in memory.

        Raises `WeightsRefused`, `NotFound` or `Unavailable`; then the old version stays in use.
        A swap that has started is completed even if its caller is cancelled.
        """
        with span_of("activate version", reference):
            return await asyncio.shield(self.start_task(self.swap(reference, at_start)))

    def start_task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task, and keep a reference until it is done."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def swap(self, reference: WeightsReference, at_start: bool) -> Swap:
        """Do the work of `activate`, from the first check to serving."""
        started = time.monotonic()
        async with self.lock:
            if reference.policy_version == self.serving and self.holds(reference):
                return Swap(policy_version=self.serving, swap_seconds=0.0, pause_seconds=0.0)
            pause = await self.ensure_loaded(reference)
            self.serve_version(reference.policy_version, started, pause, at_start)
            await self.drop_idle_versions(self.options.max_live_versions)
        return Swap(
            policy_version=self.serving,
            swap_seconds=time.monotonic() - started,
            pause_seconds=pause,
        )

    async def load(self, reference: WeightsReference) -> None:
        """Load a version without serving it; LoRA only. Raises as `activate`."""
        if self.engine.weights_kind is WeightsKind.FULL:
            raise FailedPrecondition("full weights cannot be loaded without being served")
        with span_of("load version", reference):
            await asyncio.shield(self.start_task(self.load_when_free(reference)))

    async def load_when_free(self, reference: WeightsReference) -> None:
        """Do the work of `load`, after other swaps."""
        async with self.lock:
            await self.ensure_loaded(reference)

    async def ensure_loaded(self, reference: WeightsReference) -> float:
        """Load a version that is not in memory; return the seconds in which nothing was sampled."""
        version = reference.policy_version
        if self.holds(reference):
            return 0.0
        if version == 0:
            return await self.load_into_engine(reference, self.options.base_model, None)
        try:
            manifest, folder = await self.fetch(reference)
        except TuneloopError as error:
            self.report_refusal("store", reference, error)
            raise
        try:
            check_manifest(manifest, reference, self.engine.weights_kind)
            await self.run_in_checking_thread(self.check_files, manifest, folder)
        except WeightsRefused as error:
            self.report_refusal("check", reference, error)
            raise
        try:
            return await self.load_into_engine(reference, folder, manifest)
        except TuneloopError as error:
            self.report_refusal("engine", reference, error)
            raise
        except Exception as error:
            # One bad version must not stop a service that has a good one.
            logger.exception("the engine failed to load version %d", version)
            refusal = WeightsRefused(f"version {version}: the engine could not load it: {error}")
            self.report_refusal("engine", reference, refusal)
            raise refusal from error

    async def fetch(self, reference: WeightsReference) -> tuple[Manifest, Path]:
        """Return a verified local copy of the version."""
        if reference.policy != self.options.policy:
            raise WeightsRefused(
                f"policy: {reference.policy!r} is not {self.options.policy!r}", param="policy"
            )
        return await self.run_in_checking_thread(self.store.fetch, reference)

    async def run_in_checking_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run `work` in a thread with lower priority than sampling, in the caller's trace."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.checking, copy_context().run, work, *arguments)

    def check_files(self, manifest: Manifest, folder: Path) -> None:
        """Raise `WeightsRefused` unless the files fit the base model."""
        check_fits(manifest, folder, self.options.base_model, self.options.max_lora_rank)

    async def load_into_engine(
        self, reference: WeightsReference, folder: Path, manifest: Manifest | None
    ) -> float:
        """Load checked files into the engine; return the seconds in which nothing was sampled."""
        version = reference.policy_version
        entry = Live(
            loaded_time=datetime.now(UTC),
            last_served=time.monotonic(),
            manifest_sha256=reference.manifest_sha256,
            adapter=self.numbers.number_of(reference),
            manifest=manifest,
        )
        if self.engine.weights_kind is WeightsKind.FULL:
            sha256 = manifest.sha256 if manifest else {}
            pause = await self.engine.load_full_weights(version, folder, sha256)
            self.resumption.start(entry)
            self.live = {version: entry}
        else:
            await self.make_room()
            pause = await self.engine.load_adapter(entry.adapter, folder)
            if version in self.live:
                logger.warning("version %d is replaced by other weights of that number", version)
                self.replaced.append(self.live[version])
            self.live[version] = entry
        metrics.loaded_versions.set(len(self.live))
        return pause

    def serve_version(self, version: int, started: float, pause: float, at_start: bool) -> None:
        """Serve `version` from now on; record and announce it."""
        kind = self.engine.weights_kind.value
        self.serving = version
        self.activated_time = datetime.now(UTC)
        live = self.live[version]
        live.last_served = time.monotonic()
        seconds = time.monotonic() - started
        metrics.policy_version.labels(self.options.policy).set(version)
        metrics.swap_seconds.labels(kind).observe(seconds)
        metrics.pause_seconds.labels(kind).observe(pause)
        oldest = live.manifest.data.oldest_feedback_time if live.manifest else None
        if oldest is not None and version > self.newest and not at_start:
            metrics.feedback_to_serving.observe((self.activated_time - oldest).total_seconds())
        self.newest = max(self.newest, version)
        logger.info("serving version %d after %s (pause: %s)", version, *durations(seconds, pause))
        self.on_activated(
            Activation(
                policy=self.options.policy,
                policy_version=version,
                replica=self.options.replica,
                activated_time=self.activated_time,
                swap_seconds=seconds,
                traceparent=tracing.traceparent(),
            )
        )

    def report_refusal(self, by: str, reference: WeightsReference, error: TuneloopError) -> None:
        """Count and log a version that could not be loaded."""
        metrics.swaps_refused.labels(by).inc()
        logger.error(
            "version %d was not loaded, version %d stays in use: %s",
            reference.policy_version,
            self.serving,
            error.message,
        )

    async def make_room(self) -> None:
        """Drop old versions so that one more fits. Raises `Unavailable` if all are in use."""
        await self.drop_idle_versions(self.options.max_live_versions - 1)
        if len(self.adapters()) >= self.options.max_live_versions + HEADROOM:
            raise Unavailable(
                "every loaded version is still in use; trying again in a moment", retry_after=1.0
            )

    async def drop_idle_versions(self, keep: int) -> None:
        """Drop unused versions, least recently served first, until `keep` adapters remain."""
        for live in [live for live in self.replaced if live.leases == 0]:
            self.replaced.remove(live)
            await self.engine.drop_adapter(live.adapter)
        routed = {0, self.serving}
        if self.canary is not None:
            routed.add(self.canary.weights.policy_version)
        idle = sorted(
            (v for v, live in self.live.items() if v not in routed and live.leases == 0),
            key=lambda v: self.live[v].last_served,
        )
        for version in idle[: max(0, len(self.adapters()) - keep)]:
            # Removed first: from here on no request can lease it.
            dropped = self.live.pop(version)
            await self.engine.drop_adapter(dropped.adapter)
            logger.info("dropped version %d from memory", version)
        metrics.loaded_versions.set(len(self.live))

    async def drop_idle_adapters(self) -> None:
        """Drop versions that became idle."""
        try:
            async with self.lock:
                await self.drop_idle_versions(self.options.max_live_versions)
        except TuneloopError as error:
            logger.error("could not drop an old version: %s", error.message)
        finally:
            self.is_trimming = False


def span_of(name: str, reference: WeightsReference) -> AbstractContextManager[None]:
    """Return a span for work on a version, in the trace in which it was trained."""
    attributes: tracing.Attributes = {"tuneloop.policy_version": reference.policy_version}
    return tracing.span(name, parent=reference.traceparent, attributes=attributes)
