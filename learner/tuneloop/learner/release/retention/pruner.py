"""Deletes old rollouts and old weights, a little at a time, and shows what the disk holds."""

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tuneloop.errors import TuneloopError
from tuneloop.host import steady_time
from tuneloop.learner import metrics
from tuneloop.learner.ledger.accounting import retention, versions
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.release.retention.settings import RetentionSettings
from tuneloop.learner.samples import ModelRole
from tuneloop.weights.manifest import from_json
from tuneloop.weights.store import WeightStore

logger = logging.getLogger("tuneloop.learner.release")

EVERY_SECONDS = 300.0
DAY, GIB = 86_400.0, float(1 << 30)


class Pruner:
    """Keeps what `RetentionSettings` says, and deletes the rest."""

    def __init__(
        self,
        database: Database,
        store: WeightStore,
        settings: RetentionSettings,
        data_dir: Path,
        *,
        clock: Callable[[], float] = steady_time,
    ) -> None:
        self._database = database
        self._store = store
        self._settings = settings
        self._data_dir = data_dir
        self._clock = clock

    async def run(self) -> None:
        """Prune until cancelled. Raises `Unavailable`."""
        while True:
            await asyncio.to_thread(self.prune)
            await asyncio.sleep(EVERY_SECONDS)

    def prune(self) -> None:
        """Delete what is due; blocks."""
        days = self._settings.rollout_days
        before = float("-inf") if days is None else self._clock() - days * DAY
        pruned = retention.prune_rollouts(self._database, before, self._settings.rollouts)
        for what, number in (("deleted", pruned.deleted), ("emptied", pruned.emptied)):
            metrics.rollouts_pruned.labels(what).inc(number)
        if pruned.deleted or pruned.emptied:
            logger.info("rollouts: %d deleted, %d emptied", pruned.deleted, pruned.emptied)
        for model in ModelRole:
            self._prune_versions(model)
        for kind, size in sizes_of(self._data_dir).items():
            metrics.disk_bytes.labels(kind).set(size)

    def _prune_versions(self, model: ModelRole) -> None:
        needed = versions.versions_to_keep(self._database, model)
        room = (self._settings.version_gib or float("inf")) * GIB
        total = 0.0
        for place, version in enumerate(versions.with_weights(self._database, model)):
            size = sum(file.bytes for file in from_json(version.manifest.encode()).files)
            beyond = place >= self._settings.versions or total + size > room
            if version.version in needed or not beyond:
                total += size
                continue
            try:
                self._store.delete(version.policy, version.version)
            except TuneloopError as error:
                logger.warning("%s version %d was not deleted: %s", model, version.version, error)
                continue
            versions.mark_place(self._database, model, version.version, "")
            metrics.versions_pruned.labels(model).inc()
            logger.info("%s: the weights of version %d are deleted", model, version.version)
        metrics.weights_bytes.labels(model).set(total)


def sizes_of(data_dir: Path) -> dict[str, int]:
    """Return the bytes in each folder of the learner's, and in the files of the ledger.

    What vanishes meanwhile counts nothing.
    """
    sizes: Counter[str] = Counter()
    # Unlike Path.rglob it goes on when a folder is gone.
    for folder, _, names in os.walk(data_dir):
        parts = Path(folder).relative_to(data_dir).parts
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                sizes[parts[0] if parts else "ledger"] += Path(folder, name).stat().st_size
    return sizes
