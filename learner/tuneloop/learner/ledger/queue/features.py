"""What judged answers are like, in a few numbers, kept with the samples: see `guards.content`.

They belong to one base model, as the log-probs of `ref_logprobs` do.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import select, update

from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.rows import pack_logprobs
from tuneloop.learner.ledger.schema import samples
from tuneloop.learner.samples import Objective, PairSample, TokenSequence, sequences_of

DESCRIBED: tuple[str, ...] = (Objective.KTO, Objective.DPO)
Compute = Callable[[Sequence[TokenSequence]], Sequence[tuple[float, ...]]]
"""Returns the features of completions; () for one that has none."""


def describe(database: Database, given: Mapping[str, Sequence[Any]], compute: Compute) -> bool:
    """Store features of thumbs and pairs that have none; return whether there were any such.

    Those of a pair are the chosen answer's minus the rejected one's.
    """
    missing = [
        (objective, sample)
        for objective in DESCRIBED
        for sample in _without(database, objective, given.get(objective, ()))
    ]
    if not missing:
        return False
    found = iter(compute([s for _, sample in missing for s in sequences_of(sample)]))
    with database.write() as connection:
        for objective, sample in missing:
            numbers = next(found)
            if isinstance(sample, PairSample):
                numbers = tuple(a - b for a, b in zip(numbers, next(found), strict=False))
            connection.execute(
                update(samples)
                .where(samples.c.sample_id == sample.sample_id, samples.c.objective == objective)
                .values(features=pack_logprobs(numbers))
            )
    return True


def _without(database: Database, objective: str, given: Sequence[Any]) -> list[Any]:
    by_id = {sample.sample_id: sample for sample in given}
    query = select(samples.c.sample_id).where(
        samples.c.objective == objective,
        samples.c.sample_id.in_(by_id),
        samples.c.features.is_(None),
    )
    with database.read() as connection:
        return [by_id[row.sample_id] for row in connection.execute(query)]
