"""Keeps the reward model on the version that the routing table names.

Scoring continues while a version is fetched, verified and loaded; the switch is one assignment, so
each batch is scored by one version. A version that is refused changes nothing.
"""

import asyncio
import logging
import time
from dataclasses import dataclass

from tuneloop import wire
from tuneloop.bus import Bus, subjects
from tuneloop.bus.follow import Follower
from tuneloop.errors import CorruptData, TuneloopError, WeightsRefused
from tuneloop.models.reward_model import load
from tuneloop.policies import WeightsReference
from tuneloop.reward import metrics
from tuneloop.reward.scorers.reward_model import RewardModelScorer, is_informative
from tuneloop.reward.scoring import Scoring
from tuneloop.weights.store import WeightStore

logger = logging.getLogger("tuneloop.reward")


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSwapOptions:
    """The conditions that a version must meet."""

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
        self._store = store
        self._scoring = scoring
        self._base = base
        self._options = options
        self._entry = Follower(
            bus,
            subjects.reward_model_key(options.policy),
            decode=wire.decode_routing,
            apply=self._follow,
        )

    async def activate_stable(self) -> None:
        """Use the version of the routing table; keep the base model if that fails."""
        try:
            reference = await self._entry.current()
            if reference is not None:
                await self.activate(reference)
        except TuneloopError as error:
            logger.warning("starting with the base reward model: %s", error.message)

    async def run(self) -> None:
        """Follow the routing table. Never returns."""
        await self._entry.run()

    async def _follow(self, reference: WeightsReference) -> None:
        try:
            await self.activate(reference)
        except TuneloopError:
            raise
        except Exception:
            # One bad version must not stop a process that has a good one.
            metrics.swaps_refused.labels("INTERNAL").inc()
            logger.exception("could not load reward model %d", reference.policy_version)

    async def activate(self, reference: WeightsReference) -> None:
        """Load a version and score with it from now on.

        Raises `WeightsRefused`, `NotFound`, `Unavailable`; the version in use stays.
        """
        if reference.policy_version == self._scoring.reward_model_version:
            return
        started = time.monotonic()
        try:
            scorer = await asyncio.to_thread(self._load, reference)
        except CorruptData as error:
            metrics.swaps_refused.labels(error.reason).inc()
            logger.error("refused reward model %d: %s", reference.policy_version, error.message)
            raise
        self._scoring.reward_model = scorer
        metrics.reward_model_version.set(scorer.version)
        metrics.swap_seconds.observe(time.monotonic() - started)
        logger.info(
            "reward model version %d%s", scorer.version, "" if scorer.informative else " (learning)"
        )

    def _load(self, reference: WeightsReference) -> RewardModelScorer:
        """Load a version as a scorer. Raises `WeightsRefused` unless it fits the base model."""
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
            model = load(folder, self._base.model.max_length, str(self._base.model.module.device))
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
