"""Follows the routing table: when the reward model's version changes, score with the new one.

Scoring goes on while a version is fetched, verified and loaded; the switch is one assignment, so a
batch is scored by one version. What is refused changes nothing.
"""

import asyncio
import logging
import time
from dataclasses import dataclass

from tuneloop import wire
from tuneloop.bus import Bus, subjects
from tuneloop.errors import CorruptData, NotFound, TuneloopError, Unavailable, WeightsRefused
from tuneloop.models.reward_model import load
from tuneloop.policies import WeightsReference
from tuneloop.reward import metrics
from tuneloop.reward.scorers.reward_model import RewardModelScorer, is_informative
from tuneloop.reward.scoring import Scoring
from tuneloop.weights.store import WeightStore

log = logging.getLogger("tuneloop.reward")

FIRST_DELAY = 0.5
LONGEST_DELAY = 10.0
"""Seconds before the second and between later attempts to load a version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSwapOptions:
    """What a version must be to be let in."""

    policy: str
    """The policy that is scored; its reward model is `<policy>-reward-model`."""
    base_model_sha256: str
    min_labels: int
    min_accuracy: float


class RewardModelSwap:
    """Keeps `scoring` on the version that the routing table names."""

    def __init__(
        self,
        *,
        bus: Bus,
        store: WeightStore,
        scoring: Scoring,
        base: RewardModelScorer,
        options: RewardSwapOptions,
    ) -> None:
        self._bus = bus
        self._store = store
        self._scoring = scoring
        self._base = base
        self._options = options
        self._key = subjects.reward_model_key(options.policy)

    async def activate_stable(self) -> None:
        """Before the first score: use the version of the routing table, if it can be had."""
        try:
            entry = await self._bus.routing(self._key)
            if entry is not None:
                await self.activate(wire.decode_routing(entry.value))
        except TuneloopError as error:
            log.warning("starting with the base reward model: %s", error.message)

    async def run(self) -> None:
        """Follow the routing table for ever; the newest entry takes the place of older ones."""
        attempts: asyncio.Task[None] | None = None
        try:
            async for entry in self._bus.watch_routing(self._key):
                if attempts is not None:
                    attempts.cancel()
                attempts = asyncio.create_task(self._follow(entry.value))
        finally:
            if attempts is not None:
                attempts.cancel()

    async def _follow(self, value: bytes) -> None:
        """Use the version of one entry; tried again while the store cannot give it."""
        delay = FIRST_DELAY
        while True:
            try:
                return await self.activate(wire.decode_routing(value))
            except (Unavailable, NotFound) as error:
                # A replicated store may show a version a little later than the table.
                log.warning("reward model: %s", error.message)
            except WeightsRefused:
                return None  # counted and logged where it was refused
            except CorruptData as error:
                return log.error("ignored a routing entry of the reward model: %s", error.message)
            except Exception:
                metrics.swaps_refused.labels("INTERNAL").inc()
                return log.exception("could not load a reward model")
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY)

    async def activate(self, reference: WeightsReference) -> None:
        """Load a version and score with it from now on.

        Raises `WeightsRefused`, `NotFound`, `Unavailable`; then scoring goes on as before.
        """
        if reference.policy_version == self._scoring.reward_model_version:
            return
        started = time.monotonic()
        try:
            scorer = await asyncio.to_thread(self._load, reference)
        except CorruptData as error:
            metrics.swaps_refused.labels(error.reason).inc()
            log.error("refused reward model %d: %s", reference.policy_version, error.message)
            raise
        self._scoring.reward_model = scorer
        metrics.reward_model_version.set(scorer.version)
        metrics.swap_seconds.observe(time.monotonic() - started)
        log.info(
            "reward model version %d%s", scorer.version, "" if scorer.informative else " (learning)"
        )

    def _load(self, reference: WeightsReference) -> RewardModelScorer:
        """The version as a scorer; raises `WeightsRefused` unless it fits the base model."""
        if reference.policy_version == 0:
            return self._base
        expected = f"{self._options.policy}-reward-model"
        if reference.policy != expected:
            raise WeightsRefused(f"policy is {reference.policy}, not {expected}", param="policy")
        manifest, folder = self._store.fetch(reference)
        if manifest.base_model_sha256 != self._options.base_model_sha256:
            raise WeightsRefused(
                f"trained on another base model, {manifest.base_model}", param="base_model_sha256"
            )
        try:
            model = load(folder, self._base.model.max_length)
        except CorruptData as error:
            raise WeightsRefused(error.message, param=error.param) from error
        shapes, wanted = model.shapes(), self._base.model.shapes()
        if shapes != wanted or not model.trained:
            differ = [n for n in {*shapes, *wanted} if shapes.get(n) != wanted.get(n)]
            name = min(differ, default="the head")
            raise WeightsRefused(
                f"{name}: {shapes.get(name, 'missing')}, the base model has "
                f"{wanted.get(name, 'no such tensor')}",
                param=name,
            )
        return RewardModelScorer(
            model=model,
            version=manifest.version,
            weight=self._base.weight,
            informative=is_informative(
                manifest, self._options.min_labels, self._options.min_accuracy
            ),
        )
