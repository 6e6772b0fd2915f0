"""Whether a ledger's tables are those that the code says."""

import re
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from tuneloop.learner.ledger import migration
from tuneloop.learner.ledger.database import Database
from tuneloop.learner.ledger.schema import metadata

COMMENTS = {"modify_comment", "add_table_comment", "remove_table_comment"}
"""For readers of the code; only Postgres could keep them."""


def drift_of(ledger: Database) -> list[Any]:
    """What alembic would have to change; empty for a ledger that is up to date."""
    with ledger.read() as connection:
        options = {"compare_type": True, "compare_server_default": default_differs}
        context = MigrationContext.configure(connection, opts=options)
        assert context.get_current_revision() == migration.newest()
        found = compare_metadata(context, metadata)
    changes = [change for item in found for change in (item if isinstance(item, list) else [item])]
    return [change for change in changes if change[0] not in COMMENTS]


def default_differs(
    context: Any, found: Any, wanted: Any, default: str | None, _: Any, rendered: str | None
) -> bool:
    """Alembic's own comparison stumbles over an empty text in SQLite.

    A default that filled a new column in, and that no insert needs, may stay.
    """
    return rendered is not None and plain(default) != plain(rendered)


def plain(default: str | None) -> str | None:
    return None if default is None else re.sub(r"::[a-z ]+$", "", default).strip("()'")
