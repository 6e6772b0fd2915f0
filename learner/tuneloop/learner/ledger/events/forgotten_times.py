"""When each user was forgotten: what came before is not recorded again."""

from collections.abc import Collection

from sqlalchemy import Connection, func, select

from tuneloop.learner.ledger.schema import (
    forgotten,
)


def forgotten_times(connection: Connection, user_hashes: Collection[str]) -> dict[str, float]:
    """When each of these users was forgotten last, of those who were."""
    query = (
        select(forgotten.c.user_hash, func.max(forgotten.c.time))
        .where(forgotten.c.user_hash.in_(user_hashes))
        .group_by(forgotten.c.user_hash)
    )
    return {row[0]: row[1] for row in connection.execute(query)}
