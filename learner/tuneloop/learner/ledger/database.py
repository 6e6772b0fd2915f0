"""The ledger's database: opening it, its transactions, and the facts it keeps of itself.

One process writes. SQLite runs with a write-ahead log and `synchronous=FULL`, so that what a
transaction committed survives `kill -9` and power loss alike.
"""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, inspect, select
from sqlalchemy.exc import DatabaseError

from tuneloop.errors import CorruptData, SettingsError
from tuneloop.learner.ledger.migration import upgrade
from tuneloop.learner.ledger.schema import SCHEMA_VERSION, facts, metadata

logger = logging.getLogger("tuneloop.learner.ledger")

Row = dict[str, Any]


class Database:
    """An open ledger. Safe to use from several threads; writers take turns."""

    def __init__(self, url: str) -> None:
        """Open `url`; make the tables in an empty database, bring an older ledger up to date.

        Raises `CorruptData` when it is no database, `SettingsError` when its schema is newer.
        """
        self.engine = create_engine(url)
        self._turn = threading.Lock()
        if self.engine.dialect.name == "sqlite":
            _tune_sqlite(self.engine)
        try:
            self._prepare()
        except DatabaseError as error:
            self.engine.dispose()
            raise CorruptData(f"{url}: cannot be read as a ledger: {error.orig}") from error

    @classmethod
    def at(cls, path: Path) -> "Database":
        """Open the SQLite ledger at `path`, creating its folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{path}")

    def _prepare(self) -> None:
        known = set(inspect(self.engine).get_table_names())
        if known and "facts" not in known:
            raise CorruptData(f"{self.engine.url}: a database, but not a ledger")
        if not known:
            with self.write() as connection:
                metadata.create_all(connection)
                values = {"name": "schema_version", "value": str(SCHEMA_VERSION)}
                connection.execute(facts.insert().values(values))
            return
        found = self.fact("schema_version")
        if found is None or not found.isdecimal() or not 0 < int(found) <= SCHEMA_VERSION:
            raise SettingsError(
                f"{self.engine.url}: a ledger of schema version {found}, this learner reads "
                f"versions up to {SCHEMA_VERSION}; use another data directory or a newer release"
            )
        if int(found) < SCHEMA_VERSION:
            with self.write() as connection:
                upgrade(connection, int(found))
            logger.info(
                "the ledger was brought from schema version %s to %d", found, SCHEMA_VERSION
            )

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes: all of it is kept, or nothing when the block raises."""
        with self._turn, self.engine.connect() as plain:
            connection = plain.execution_options(immediate=True)
            with connection.begin():
                yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the ledger."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    def fact(self, name: str) -> str | None:
        """A fact the ledger keeps of itself, or None."""
        with self.read() as connection:
            query = select(facts.c.value).where(facts.c.name == name)
            return connection.execute(query).scalar_one_or_none()

    def set_fact(self, name: str, value: str) -> None:
        """Keep a fact, in place of an earlier one."""
        with self.write() as connection:
            connection.execute(facts.delete().where(facts.c.name == name))
            connection.execute(facts.insert().values(name=name, value=value))

    def belongs_to(self, identity: Mapping[str, str]) -> None:
        """Keep what the ledger belongs to; raise `SettingsError` when it belongs to another.

        `identity` names what must not change under checkpoints and versions: the policy, the base
        model's hash, the kind of weights.
        """
        for name, value in identity.items():
            found = self.fact(name)
            if found is None:
                self.set_fact(name, value)
            elif found != value:
                raise SettingsError(
                    f"{self.engine.url}: made for {name} {found!r}, not {value!r}; "
                    "choose another data directory for another model",
                    param=name,
                )

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def insert_new(
    connection: Connection, table: Table, rows: Sequence[Row], key: Sequence[str]
) -> list[Row]:
    """Insert the rows whose `key` is not there yet; returns them. The first of a key wins."""
    if not rows:
        return []
    first = {tuple(row[name] for name in key): row for row in reversed(rows)}
    columns = [table.c[name] for name in key]
    candidates = select(*columns).where(columns[0].in_([row[key[0]] for row in rows]))
    known = {tuple(found) for found in connection.execute(candidates)}
    new = [row for identity, row in reversed(first.items()) if identity not in known]
    if new:
        connection.execute(table.insert(), new)
    return new


def _tune_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, record: Any) -> None:
        # The driver must not begin transactions by itself: the events below do.
        connection.isolation_level = None
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "busy_timeout=30000",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
