"""Gauges of what the ledger holds, refreshed regularly."""

import asyncio
from collections.abc import Callable, Sequence

from tuneloop.learner import metrics
from tuneloop.learner.batching.batch import BatchProgress
from tuneloop.learner.ledger.accounting import forget_user
from tuneloop.learner.ledger.accounting.version_shares import retracted_shares
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.queue import ready
from tuneloop.learner.ledger.reports.evaluations import newest_evaluation
from tuneloop.learner.samples import Objective

EVERY_SECONDS = 5.0


def refresh(database: Database) -> None:
    """Read the ledger once into the gauges."""
    for table, rows in forget_user.row_counts(database).items():
        metrics.ledger_rows.labels(table).set(rows)
    for objective in Objective:
        counts = ready.counts(database, objective)
        metrics.samples.labels(objective, "ready").set(counts.ready)
        metrics.samples.labels(objective, "waiting").set(counts.waiting)
        metrics.samples.labels(objective, "used").set(counts.used)
    parts = retracted_shares(database)
    metrics.retracted_samples.set(sum(part.samples for part in parts))
    metrics.retracted_share.set(max((part.share for part in parts), default=0.0))
    show_evaluation(database)


def show_progress(progress: Sequence[BatchProgress]) -> None:
    """Show how full the next batches are."""
    for part in progress:
        metrics.batch_fill.labels(part.objective).set(part.have / max(1, part.want))


async def keep_fresh(database: Database, progress: Callable[[], Sequence[BatchProgress]]) -> None:
    """Refresh the gauges until cancelled."""
    while True:
        await asyncio.to_thread(refresh, database)
        show_progress(await asyncio.to_thread(progress))
        await asyncio.sleep(EVERY_SECONDS)


def show_evaluation(database: Database) -> None:
    """Show the newest evaluation."""
    found = newest_evaluation(database)
    if found is None:
        return
    metrics.eval_version.set(found.policy_version)
    metrics.eval_length.set(found.length.value)
    metrics.eval_thought_length.set(found.thought_length.value)
    if found.reward is not None:
        metrics.eval_reward.set(found.reward.value)
    if found.kl is not None:
        metrics.eval_kl.set(found.kl)
