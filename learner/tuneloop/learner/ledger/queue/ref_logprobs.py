"""The reference policy's log-probs of completion tokens: computed once, stored, put into samples.

They are stored by a hash of the sequence's tokens and temperature, so one completion in several
samples, objectives and epochs is computed once. They belong to one base model: `set_base_model`
empties the cache when another one is served.
"""

import hashlib
import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import delete, select, update

from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.rows import insert_new, pack_ids, pack_logprobs, unpack_logprobs
from tuneloop.learner.ledger.schema import reference_logprobs, samples
from tuneloop.learner.samples import TokenSequence, sequences_of, with_ref_logprobs

REFERENCE = "reference policy"
"""The ledger's fact that names the base model of the log-probs."""
ROWS_AT_ONCE = 500

Compute = Callable[[Sequence[TokenSequence]], Sequence[tuple[float, ...]]]
"""Returns the reference policy's log-probs of completion tokens; () where it cannot score one."""


def set_base_model(database: Database, identity: str) -> None:
    """Name the base model that is served; delete log-probs and features of another one."""
    if database.fact(REFERENCE) == identity:
        return
    with database.write() as connection:
        connection.execute(delete(reference_logprobs))
        connection.execute(update(samples).values(features=None))
    database.set_fact(REFERENCE, identity)


def with_references(
    database: Database,
    samples: Mapping[str, Sequence[Any]],
    *,
    needed_by: Collection[str],
    compute: Compute,
) -> dict[str, list[Any]]:
    """Return the samples by objective with the reference log-probs that are known.

    Those that the objectives of `needed_by` lack are computed and stored.
    """
    sequences = {
        objective: {
            key_of(sequence): sequence
            for sample in group
            for sequence in sequences_of(sample)
            if not sequence.ref_logprobs
        }
        for objective, group in samples.items()
    }
    known = load_logprobs(database, [key for group in sequences.values() for key in group])
    missing = {
        key: sequence
        for objective in sequences.keys() & set(needed_by)
        for key, sequence in sequences[objective].items()
        if key not in known
    }
    if missing:
        computed = compute(list(missing.values()))
        fresh = {k: logprobs for k, logprobs in zip(missing, computed, strict=True) if logprobs}
        save_logprobs(database, fresh)
        known |= fresh
    return {
        objective: [
            with_ref_logprobs(sample, lambda sequence: known_logprobs(sequence, known))
            for sample in group
        ]
        for objective, group in samples.items()
    }


def load_logprobs(database: Database, keys: Iterable[str]) -> dict[str, tuple[float, ...]]:
    """Return the log-probs that are known for these keys."""
    found: dict[str, tuple[float, ...]] = {}
    wanted = sorted(set(keys))
    with database.read() as connection:
        for start in range(0, len(wanted), ROWS_AT_ONCE):
            some = wanted[start : start + ROWS_AT_ONCE]
            query = select(reference_logprobs).where(reference_logprobs.c.sequence.in_(some))
            for row in connection.execute(query):
                found[row.sequence] = unpack_logprobs(row.logprobs)
    return found


def save_logprobs(database: Database, logprobs: Mapping[str, Sequence[float]]) -> None:
    """Store log-probs by key."""
    rows = [{"sequence": key, "logprobs": pack_logprobs(v)} for key, v in logprobs.items()]
    with database.write() as connection:
        insert_new(connection, reference_logprobs, rows, ("sequence",))


def key_of(sequence: TokenSequence) -> str:
    """Return the key of a sequence's log-probs."""
    prompt = sequence.prompt_token_ids
    head = struct.pack("<dq", sequence.temperature, len(prompt))
    tokens = pack_ids((*prompt, *sequence.completion_token_ids))
    return hashlib.sha256(head + tokens).hexdigest()


def filled(sequence: TokenSequence, known: Mapping[str, tuple[float, ...]]) -> TokenSequence:
    """Return the sequence with its log-probs, if known."""
    return replace(sequence, ref_logprobs=known_logprobs(sequence, known))


def known_logprobs(
    sequence: TokenSequence, known: Mapping[str, tuple[float, ...]]
) -> tuple[float, ...]:
    """Return the log-probs that a sequence has or that are known for it, else ()."""
    return sequence.ref_logprobs or known.get(key_of(sequence), ())
