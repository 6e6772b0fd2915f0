"""What the reference policy gives each completion token: computed once, kept, put into samples.

Kept by what a sequence is (its tokens and temperature), so that one completion in several samples,
objectives and epochs is computed once. Good for one base model: `keep_for` empties the cache when
another one is served.
"""

import hashlib
import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import delete, select

from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.rows import insert_new, pack_ids, pack_logprobs, unpack_logprobs
from tuneloop.learner.ledger.schema import reference_logprobs
from tuneloop.learner.samples import (
    DemonstrationSample,
    PairSample,
    ScoredGroup,
    ScoredSample,
    ThumbSample,
    TokenSequence,
)

REFERENCE = "reference policy"
"""Fact of the ledger: what the log-probs are of."""
ROWS_AT_ONCE = 500

Compute = Callable[[Sequence[TokenSequence]], Sequence[tuple[float, ...]]]
"""The reference policy's log-probs of the completion tokens; () for what it cannot take."""


def keep_for(database: Database, identity: str) -> None:
    """Keep the log-probs if they are of this base model, else forget them all."""
    if database.fact(REFERENCE) == identity:
        return
    with database.write() as connection:
        connection.execute(delete(reference_logprobs))
    database.set_fact(REFERENCE, identity)


def with_references(
    database: Database,
    samples: Mapping[str, Sequence[Any]],
    *,
    needed_by: Collection[str],
    compute: Compute,
) -> dict[str, list[Any]]:
    """The samples by objective with reference log-probs, as far as they are known.

    What the objectives of `needed_by` lack is computed and kept.
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
    known = load(database, [key for group in sequences.values() for key in group])
    missing = {
        key: sequence
        for objective in sequences.keys() & set(needed_by)
        for key, sequence in sequences[objective].items()
        if key not in known
    }
    if missing:
        computed = compute(list(missing.values()))
        fresh = {k: logprobs for k, logprobs in zip(missing, computed, strict=True) if logprobs}
        save(database, fresh)
        known |= fresh
    return {
        objective: [_with_known(sample, known) for sample in group]
        for objective, group in samples.items()
    }


def load(database: Database, keys: Iterable[str]) -> dict[str, tuple[float, ...]]:
    """What is known of the sequences with these keys."""
    found: dict[str, tuple[float, ...]] = {}
    wanted = sorted(set(keys))
    with database.read() as connection:
        for start in range(0, len(wanted), ROWS_AT_ONCE):
            some = wanted[start : start + ROWS_AT_ONCE]
            query = select(reference_logprobs).where(reference_logprobs.c.sequence.in_(some))
            for row in connection.execute(query):
                found[row.sequence] = unpack_logprobs(row.logprobs)
    return found


def save(database: Database, logprobs: Mapping[str, Sequence[float]]) -> None:
    """Keep log-probs by key."""
    rows = [{"sequence": key, "logprobs": pack_logprobs(v)} for key, v in logprobs.items()]
    with database.write() as connection:
        insert_new(connection, reference_logprobs, rows, ("sequence",))


def key_of(sequence: TokenSequence) -> str:
    """What a sequence's log-probs are kept by."""
    prompt = sequence.prompt_token_ids
    head = struct.pack("<dq", sequence.temperature, len(prompt))
    tokens = pack_ids((*prompt, *sequence.completion_token_ids))
    return hashlib.sha256(head + tokens).hexdigest()


def sequences_of(sample: Any) -> tuple[TokenSequence, ...]:
    """The token sequences of a policy's sample; none of a reward model's."""
    match sample:
        case PairSample():
            return (sample.chosen, sample.rejected)
        case DemonstrationSample() | ThumbSample() | ScoredSample():
            return (sample.sequence,)
        case ScoredGroup():
            return tuple(scored.sequence for scored in sample.samples)
    return ()


def filled(sequence: TokenSequence, known: Mapping[str, tuple[float, ...]]) -> TokenSequence:
    """The sequence with its log-probs, where they are known."""
    logprobs = sequence.ref_logprobs or known.get(key_of(sequence), ())
    return replace(sequence, ref_logprobs=logprobs)


def _with_known(sample: Any, known: Mapping[str, tuple[float, ...]]) -> Any:
    match sample:
        case PairSample():
            return replace(
                sample,
                chosen=filled(sample.chosen, known),
                rejected=filled(sample.rejected, known),
            )
        case DemonstrationSample() | ThumbSample() | ScoredSample():
            return replace(sample, sequence=filled(sample.sequence, known))
        case ScoredGroup():
            members = tuple(_with_known(scored, known) for scored in sample.samples)
            return replace(sample, samples=members)
    return sample
