"""Gauges of what the ledger holds, refreshed now and then."""

import asyncio

from tuneloop.learner import evaluation, metrics
from tuneloop.learner.ledger import forget, ready
from tuneloop.learner.ledger.database import Database

EVERY_SECONDS = 5.0
OBJECTIVES = ("sft", "kto", "dpo", "ppo", "grpo", "reward_model")


def refresh(database: Database) -> None:
    """Read the ledger once into the gauges."""
    for table, rows in forget.row_counts(database).items():
        metrics.ledger_rows.labels(table).set(rows)
    for objective in OBJECTIVES:
        counts = ready.counts(database, objective)
        metrics.samples.labels(objective, "ready").set(counts.ready)
        metrics.samples.labels(objective, "waiting").set(counts.waiting)
        metrics.samples.labels(objective, "used").set(counts.used)
    evaluation.show(database)


async def keep_fresh(database: Database) -> None:
    """Refresh for ever."""
    while True:
        await asyncio.to_thread(refresh, database)
        await asyncio.sleep(EVERY_SECONDS)
