"""Prompts that are only evaluated on: answers to them are never learned from, whoever asked."""

from collections.abc import Iterable

from sqlalchemy import delete

from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.rows import prompt_sha256
from tuneloop.learner.ledger.schema import held_out


def hold_out(database: Database, prompts: Iterable[tuple[int, ...]]) -> None:
    """Hold out these prompts, given as token ids, in place of those held out before."""
    hashes = sorted({prompt_sha256(prompt) for prompt in prompts})
    with database.write() as connection:
        connection.execute(delete(held_out))
        if hashes:
            connection.execute(held_out.insert(), [{"prompt_sha256": h} for h in hashes])
