"""Used preference samples that are learned from again beside new ones."""

import random
from collections.abc import Collection
from typing import Any

from sqlalchemy import func, select

from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.queue.build_samples import Builder, EditTokens, Sample
from tuneloop.learner.ledger.queue.ready import COLUMNS, ready_samples
from tuneloop.learner.ledger.schema import samples, uses
from tuneloop.learner.samples import SampleState

WINDOW = 2048
"""The number of latest used samples to choose from."""
RANDOM_WINDOW = 8192
"""The same where they are drawn at random, without a look at their uses."""


def replays(
    database: Database,
    objective: str,
    count: int,
    *,
    seed: str,
    exclude: Collection[str] = (),
    edit_tokens: EditTokens | None = None,
    not_before: float = 0.0,
    at_random: bool = False,
) -> list[Sample]:
    """Return up to `count` used samples of an objective: the least used first, else at random.

    The least used are mostly the newest, so that each has all its uses soon after it came. A model
    that has to find a rule in its samples needs old ones again: `at_random` draws from all alike.
    Only what is still the user's last word and was accepted since `not_before`. The same `seed` and
    ledger give the same samples.
    """
    with database.read() as connection:
        # To join thousands with their rollouts takes a while; what is drawn is joined below.
        among: Any = ready_samples(samples.c.sample_id)
        if at_random:
            among = select(samples.c.sample_id)
        recent = (
            among.where(
                samples.c.objective == objective,
                samples.c.state == SampleState.USED,
                samples.c.current.is_(True),
                samples.c.accepted_time >= not_before,
            )
            .order_by(samples.c.accepted_time.desc(), samples.c.sample_id)
            .limit(RANDOM_WINDOW if at_random else WINDOW)
        )
        excluded = set(exclude)
        ids = [i for i in connection.execute(recent).scalars() if i not in excluded]
        # Not cryptographic: the same samples must come again after a crash.
        random.Random(seed).shuffle(ids)  # noqa: S311
        used: dict[str, int] = {}
        if not at_random:
            counted = (
                select(uses.c.sample_id, func.count())
                .where(uses.c.objective == objective, uses.c.sample_id.in_(ids))
                .group_by(uses.c.sample_id)
            )
            used = {row[0]: row[1] for row in connection.execute(counted)}
        chosen = sorted(ids, key=lambda sample_id: used.get(sample_id, 0))[:count]
        query = ready_samples(*COLUMNS).where(
            samples.c.objective == objective, samples.c.sample_id.in_(chosen)
        )
        builder = Builder(connection, edit_tokens)
        rows = {row.sample_id: row for row in connection.execute(query)}
        return [builder.build(rows[sample_id]) for sample_id in chosen if sample_id in rows]
