"""What judged answers are like, in a few numbers, kept with the samples: see `guards.content`.

They belong to one base model, as the log-probs of `ref_logprobs` do.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import select, update

from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.queue.ref_logprobs import key_of, save_logprobs
from tuneloop.learner.ledger.rows import pack_logprobs
from tuneloop.learner.ledger.schema import samples
from tuneloop.learner.samples import (
    Objective,
    Reference,
    TokenSequence,
    sequences_of,
)

logger = logging.getLogger("tuneloop.learner.ledger")
DESCRIBED: tuple[str, ...] = (Objective.KTO, Objective.DPO)
Compute = Callable[[Sequence[TokenSequence]], Sequence[Reference]]


def describe(database: Database, given: Mapping[str, Sequence[Any]], compute: Compute) -> bool:
    """Store features of thumbs and pairs that have none; return whether there were any such.

    The samples are given as a step learns from them (`Trainer.as_learned`). Features of a pair are
    the chosen answer's minus the rejected one's. The log-probs of the same pass are stored too: the
    step needs them.
    """
    missing = [
        (objective, sample)
        for objective in DESCRIBED
        for sample in _without(database, objective, given.get(objective, ()))
    ]
    if not missing:
        return False
    sequences = {key_of(s): s for _, sample in missing for s in sequences_of(sample)}
    try:
        references = compute(list(sequences.values()))
    except (RuntimeError, MemoryError) as error:
        # Out of memory, most likely: the step will say so too, and what to do about that is there.
        logger.warning("what judged answers are like could not be computed: %s", error)
        return False
    found = dict(zip(sequences, references, strict=True))
    logprobs = {key: reference.logprobs for key, reference in found.items() if reference.logprobs}
    save_logprobs(database, logprobs)
    with database.write() as connection:
        for objective, sample in missing:
            numbers, *others = (found[key_of(s)].features for s in sequences_of(sample))
            if others:
                numbers = tuple(a - b for a, b in zip(numbers, others[0], strict=False))
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
