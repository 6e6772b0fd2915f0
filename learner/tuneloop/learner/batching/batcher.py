"""When there is enough to learn from, and what goes into a step together.

Batchers only read the ledger. What they find out on the way (samples that can never be trained on,
versions too old to learn from) comes back with the batch, and `TrainingRun.next_batch` records it.

A step is due when a batch is full, when no sample has come for a while, or when the oldest one has
waited long enough: one user's thumb is learned from at once, and many users' thumbs are learned
from together. Part of a batch of judgements may be replays of used ones. Scored rollouts join a
step in batches of their own size; they need no time limit, since there are always more of them than
users' judgements.

If a queue is longer than its part of the batch, every user's oldest samples go first, up to the
share that one user may have; `batching.trust` says how much each sample then counts.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneloop.host import steady_time
from tuneloop.learner.batching.batch import Batch, BatchProgress, FormedBatch, RunProgress
from tuneloop.learner.batching.soft_labels import SoftLabels
from tuneloop.learner.batching.trust import Trust
from tuneloop.learner.ledger.accounting import lineage
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.queue import groups, ready
from tuneloop.learner.ledger.queue.build_samples import EditTokens, Sample
from tuneloop.learner.ledger.queue.ready import Readiness, Refusal
from tuneloop.learner.ledger.queue.replay import replays
from tuneloop.learner.samples import JUDGED_OBJECTIVES, SCORED_OBJECTIVES, Objective
from tuneloop.learner.settings import LearnerSettings

Clock = Callable[[], float]

QUIET_SHARE = 0.2
"""Of `batch_wait_seconds`: after so long without a new sample, those that wait go without more."""


@dataclass(slots=True)
class Found:
    """What was taken from the queues for one batch."""

    samples: dict[str, list[Any]] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)

    def add(self, objective: str, taken: tuple[Sequence[Sample], Sequence[Refusal]]) -> None:
        """Add the samples of an objective and those that cannot be trained on."""
        samples, refusals = taken
        self.samples[objective] = list(samples)
        self.refusals += refusals


class PolicyBatcher:
    """Batches of judgements and of scored rollouts (ppo or grpo) for the policy."""

    def __init__(
        self,
        database: Database,
        settings: LearnerSettings,
        *,
        edit_tokens: EditTokens | None = None,
        clock: Clock = steady_time,
    ) -> None:
        """Learning from edited answers needs `edit_tokens`."""
        self._database = database
        self._settings = settings
        self._edit_tokens = edit_tokens
        self._clock = clock
        full_step = float(settings.batch_size)
        self._trust = Trust(database, settings.guards, full_step=full_step, clock=clock)

    def form(self, run: RunProgress, limit: int | None = None) -> FormedBatch:
        """Return the samples of the next step.

        `limit` is the most samples in all, after a step that failed.
        """
        found = Found()
        replayed: dict[str, list[str]] = {}
        queues = {objective: self._readiness(run, objective) for objective in JUDGED_OBJECTIVES}
        fresh = self._settings.fresh_batch_size
        if _due(queues, settings=self._settings, full=fresh, now=self._clock()):
            counts = {objective: queue.count for objective, queue in queues.items()}
            for objective, count in share_evenly(counts, fresh).items():
                if count > 0:
                    found.add(objective, self._take(run, objective, count))
            if limit is None:
                replayed = self._add_replays(run, found.samples)
        fresh_versions: dict[str, Collection[int]] = {}
        for objective in SCORED_OBJECTIVES:
            if self._settings.weight_of(objective) > 0:
                recent = lineage.fresh_versions(self._database, self._settings.max_staleness)
                fresh_versions[objective] = recent
                found.add(objective, self._take_scored(run, objective, recent))
        return FormedBatch(
            batch=limit_batch(self._trust.add_trust(found.samples), replayed, limit),
            refusals=found.refusals,
            fresh_versions=fresh_versions,
        )

    def renew_trust(self) -> None:
        """See `Batcher.renew_trust`."""
        self._trust.renew()

    def progress(self, run: RunProgress) -> list[BatchProgress]:
        """Return how far the next steps are."""
        settings = self._settings
        judged = sum(self._readiness(run, objective).count for objective in JUDGED_OBJECTIVES)
        found = [BatchProgress(objective="judgements", have=judged, want=settings.fresh_batch_size)]
        objective = settings.scored_objective
        if settings.weight_of(objective) > 0:
            scored = self._scored(run, objective).count
            want = settings.policy_gradient_batch_size
            found.append(BatchProgress(objective=objective, have=scored, want=want))
        return found

    def _scored(
        self, run: RunProgress, objective: str, fresh_versions: Collection[int] | None = None
    ) -> Readiness:
        exclude = run.uncommitted_ids(objective)
        if objective == Objective.PPO:
            return ready.readiness(
                self._database, Objective.PPO, exclude, fresh_versions=fresh_versions
            )
        return groups.readiness(
            self._database,
            now=self._clock(),
            wait_seconds=self._settings.group_wait_seconds,
            exclude=exclude,
            fresh_versions=fresh_versions,
        )

    def _readiness(self, run: RunProgress, objective: str) -> Readiness:
        if self._settings.weight_of(objective) == 0:
            return Readiness(count=0, oldest_time=None, newest_time=None)
        return ready.readiness(self._database, objective, run.uncommitted_ids(objective))

    def _take(
        self,
        run: RunProgress,
        objective: str,
        count: int,
        fresh_versions: Collection[int] | None = None,
    ) -> tuple[list[Sample], list[Refusal]]:
        return ready.take_samples(
            self._database,
            objective,
            count,
            exclude=run.uncommitted_ids(objective),
            edit_tokens=self._edit_tokens,
            of_each_user=samples_of_each_user(count, self._trust),
            fresh_versions=fresh_versions,
            higher_is_better=self._settings.reward_metric_higher_is_better,
        )

    def _add_replays(self, run: RunProgress, batch: dict[str, list[Any]]) -> dict[str, list[str]]:
        """Add used samples of the objectives that have new ones; return their ids by objective."""
        added: dict[str, list[str]] = {}
        for objective, fresh in batch.items():
            again = replayed_beside(
                len(fresh),
                self._settings.replay_fraction,
                self._database,
                run,
                objective,
                seed=self._settings.seed,
                edit_tokens=self._edit_tokens,
                not_before=self._settings.oldest_feedback(self._clock()),
            )
            if again:
                batch[objective] = [*fresh, *again]
                added[objective] = [sample.sample_id for sample in again]
        return added

    def _take_scored(
        self, run: RunProgress, objective: str, fresh_versions: Collection[int]
    ) -> tuple[Sequence[Sample], list[Refusal]]:
        """Return a batch of scored rollouts, once there are enough for one."""
        size = self._settings.policy_gradient_batch_size
        if self._scored(run, objective, fresh_versions).count < size:
            return [], []
        if objective == Objective.PPO:
            return self._take(run, Objective.PPO, size, fresh_versions)
        return groups.take_groups(
            self._database,
            size,
            now=self._clock(),
            wait_seconds=self._settings.group_wait_seconds,
            exclude=run.uncommitted_ids(objective),
            fresh_versions=fresh_versions,
            higher_is_better=self._settings.reward_metric_higher_is_better,
        )


class RewardBatcher:
    """Batches of labels, ratings and preferences for the reward model."""

    def __init__(
        self,
        database: Database,
        settings: LearnerSettings,
        *,
        clock: Clock = steady_time,
    ) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock
        full_step = float(settings.reward_batch_size)
        self._trust = Trust(database, settings.guards, full_step=full_step, clock=clock)
        self._soft_labels = SoftLabels(database, clock) if settings.signals != "off" else None

    def form(self, run: RunProgress, limit: int | None = None) -> FormedBatch:
        """As `PolicyBatcher.form`."""
        settings, exclude = self._settings, run.uncommitted_ids(Objective.REWARD_MODEL)
        labels = ready.readiness(self._database, Objective.REWARD_MODEL, exclude)
        full = settings.fresh_reward_batch_size
        queues: dict[str, Readiness] = {Objective.REWARD_MODEL: labels}
        if not _due(queues, settings=settings, full=full, now=self._clock()):
            return FormedBatch(batch=None)
        taken, refusals = ready.take_samples(
            self._database,
            Objective.REWARD_MODEL,
            full,
            exclude=exclude,
            of_each_user=samples_of_each_user(full, self._trust),
        )
        again: list[Any] = []
        told: list[Any] = []
        not_before = settings.oldest_feedback(self._clock())
        if limit is None:
            again = replayed_beside(
                len(taken),
                settings.reward_replay_fraction,
                self._database,
                run,
                Objective.REWARD_MODEL,
                seed=settings.seed,
                not_before=not_before,
            )
            if self._soft_labels is not None:
                told = self._soft_labels.take(
                    math.fsum(sample.weight for sample in [*taken, *again]),
                    not_before=not_before,
                    exclude=run.uncommitted_ids(Objective.SIGNALS),
                )
        replayed: dict[str, list[str]] = {}
        if again:
            replayed[Objective.REWARD_MODEL] = [sample.sample_id for sample in again]
        found = {Objective.REWARD_MODEL: [*taken, *again], Objective.SIGNALS: told}
        batch = self._trust.add_trust({name: group for name, group in found.items() if group})
        return FormedBatch(batch=limit_batch(batch, replayed, limit), refusals=refusals)

    def renew_trust(self) -> None:
        """See `Batcher.renew_trust`."""
        self._trust.renew()

    def progress(self, run: RunProgress) -> list[BatchProgress]:
        """Return how far the next step is."""
        exclude = run.uncommitted_ids(Objective.REWARD_MODEL)
        have = ready.readiness(self._database, Objective.REWARD_MODEL, exclude).count
        want = self._settings.fresh_reward_batch_size
        return [BatchProgress(objective=Objective.REWARD_MODEL, have=have, want=want)]


def replayed_beside(
    fresh: int,
    fraction: float,
    database: Database,
    run: RunProgress,
    objective: str,
    *,
    seed: int,
    edit_tokens: EditTokens | None = None,
    not_before: float,
) -> list[Any]:
    """Return used samples to add to `fresh` new ones, so that they are `fraction` of all."""
    count = round(fresh * fraction / (1 - fraction))
    if count == 0:
        return []
    return replays(
        database,
        objective,
        count,
        seed=f"{seed}-{run.step}",
        exclude=run.uncommitted_ids(objective),
        edit_tokens=edit_tokens,
        not_before=not_before,
        at_random=objective == Objective.REWARD_MODEL,
    )


def samples_of_each_user(count: int, trust: Trust) -> int:
    """Return how many samples of one user go before all their others."""
    return max(1, int(count * trust.share_of_user()))


def share_evenly(counts: Mapping[str, int], size: int) -> dict[str, int]:
    """Return how many samples each queue gives to a batch: equal parts, filled up by others."""
    taken = dict.fromkeys(counts, 0)
    while size > sum(taken.values()):
        open_queues = [name for name, count in counts.items() if count > taken[name]]
        if not open_queues:
            break
        for name in open_queues[: size - sum(taken.values())]:
            taken[name] += 1
    return taken


def limit_batch(
    batch: Mapping[str, list[Any]], replayed: Mapping[str, list[str]], limit: int | None
) -> Batch | None:
    """Return the batch with at most `limit` samples in all; None if there are none."""
    kept: dict[str, list[Any]] = {}
    room = sum(map(len, batch.values())) if limit is None else limit
    for objective, samples in batch.items():
        if samples[:room]:
            kept[objective] = samples[:room]
            room -= len(kept[objective])
    return Batch(samples=kept, replayed=replayed) if kept else None


def _due(
    queues: Mapping[str, Readiness], *, settings: LearnerSettings, full: int, now: float
) -> bool:
    count = sum(queue.count for queue in queues.values())
    if count >= full:
        return True
    oldest = min((q.oldest_time for q in queues.values() if q.oldest_time is not None), default=now)
    newest = max((q.newest_time for q in queues.values() if q.newest_time is not None), default=now)
    # Recorded in the future: the clock was set back before a restart.
    longest = settings.batch_wait_seconds
    waited = abs(now - oldest) >= longest or abs(now - newest) >= QUIET_SHARE * longest
    return 0 < count >= min(settings.min_batch_size, full) and waited
