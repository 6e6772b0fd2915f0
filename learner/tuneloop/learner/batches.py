"""When there is enough to learn from, and what goes into a step together.

A step is formed when a batch is full, or when the oldest sample has waited long enough, so that one
thumb of one user is learned from in seconds and a crowd's are learned from together. Scored
rollouts join a step in batches of their own size; they never wait for a clock, since there are
always more of them than users' judgements.
"""

import time
from collections.abc import Callable
from typing import Any

from tuneloop.learner import metrics
from tuneloop.learner.ledger import ready, versions
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.ready import Readiness
from tuneloop.learner.settings import LearnerSettings
from tuneloop.learner.trainee import Batch, Trainee

Clock = Callable[[], float]


class PolicyBatches:
    """Batches of thumbs (kto), pairs (dpo) and scored rollouts (ppo) for the policy."""

    def __init__(
        self,
        database: Database,
        settings: LearnerSettings,
        *,
        clock: Clock = time.time,
    ) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock

    def form(self, trainee: Trainee, limit: int | None = None) -> Batch | None:
        """The samples of the next step, or None while it is too early.

        `limit` is the most samples of an objective, after a step that failed.
        """
        settings = self._settings
        thumbs = self._readiness(trainee, "kto")
        pairs = self._readiness(trainee, "dpo")
        wanted: dict[str, int] = {}
        if _due(thumbs, pairs, settings=settings, full=settings.batch_size, now=self._clock()):
            size = settings.batch_size
            # Pairs get half of a full batch, and what thumbs leave of the rest.
            wanted["dpo"] = min(pairs.count, max(size // 2, size - thumbs.count))
            wanted["kto"] = min(thumbs.count, size - wanted["dpo"])
        if settings.weight_of("ppo") > 0:
            self._drop_stale(trainee)
            if self._readiness(trainee, "ppo").count >= settings.ppo_batch_size:
                wanted["ppo"] = settings.ppo_batch_size
        return take(self._database, trainee, wanted, limit)

    def _readiness(self, trainee: Trainee, objective: str) -> Readiness:
        if self._settings.weight_of(objective) == 0:
            return Readiness(count=0, oldest_time=None)
        return ready.readiness(self._database, objective, trainee.uncommitted.ids(objective))

    def _drop_stale(self, trainee: Trainee) -> None:
        newest = versions.newest_version(self._database, trainee.model)
        oldest_allowed = newest - self._settings.max_staleness
        exclude = trainee.uncommitted.ids("ppo")
        metrics.rollouts_stale.inc(ready.mark_stale(self._database, oldest_allowed, exclude))


class RewardBatches:
    """Batches of labels and preferences for the reward model."""

    def __init__(
        self,
        database: Database,
        settings: LearnerSettings,
        *,
        clock: Clock = time.time,
    ) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock

    def form(self, trainee: Trainee, limit: int | None = None) -> Batch | None:
        """As `PolicyBatches.form`."""
        exclude = trainee.uncommitted.ids("reward_model")
        labels = ready.readiness(self._database, "reward_model", exclude)
        full = self._settings.reward_batch_size
        due = _due(labels, settings=self._settings, full=full, now=self._clock())
        wanted = {"reward_model": full} if due else {}
        return take(self._database, trainee, wanted, limit)


def take(
    database: Database,
    trainee: Trainee,
    wanted: dict[str, int],
    limit: int | None,
) -> Batch | None:
    """Take the wanted number of samples of each objective; None when there are none."""
    batch: dict[str, list[Any]] = {}
    for objective, count in wanted.items():
        if count == 0:
            continue
        taken, refusals = ready.take(
            database,
            objective,
            count if limit is None else min(count, limit),
            exclude=trainee.uncommitted.ids(objective),
        )
        trainee.refuse(refusals)
        if taken:
            batch[objective] = taken
    return batch or None


def _due(*queues: Readiness, settings: LearnerSettings, full: int, now: float) -> bool:
    count = sum(queue.count for queue in queues)
    if count >= full:
        return True
    oldest = min((q.oldest_time for q in queues if q.oldest_time is not None), default=None)
    waited = oldest is not None and now - oldest >= settings.batch_wait_seconds
    return waited and count >= min(settings.min_batch_size, full)
