"""The ledger's database: how it is opened, its transactions, and facts about the ledger itself.

One process writes. A committed transaction survives `kill -9` and a power failure. While the
database cannot be used (it is unreachable, or its disk is full) every call raises `Unavailable`,
and nothing of the transaction is kept.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Engine, create_engine, event, make_url, select
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DatabaseError, InterfaceError, OperationalError

from tuneloop.errors import CorruptData, SettingsError, Unavailable
from tuneloop.learner.ledger import postgres
from tuneloop.learner.ledger.schema import facts

logger = logging.getLogger("tuneloop.learner.ledger")
RECONNECT_SECONDS = 30.0
"""How long a transaction waits for a server that is away before it gives up."""
RETRY_SECONDS = 1.0
LOCK_SECONDS = 3.0
OWN_ID = "ledger"
"""The fact that tells a ledger from others."""


class Database:
    """An open ledger. Safe to use from several threads; writers take turns."""

    def __init__(self, url: str, *, writer: bool = False) -> None:
        """Open `url`; create the tables in an empty database, migrate an older ledger.

        The one `writer` of a ledger on a server keeps other writers out; a lock file does that for
        a SQLite file. Raises `CorruptData` if the database is not a ledger, `SettingsError` if its
        schema is newer, `FailedPrecondition` if another learner writes to it, and `Unavailable` if
        it cannot be opened.
        """
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise SettingsError(f"ledger_url: {error}", param="ledger_url") from error
        self.name = str(parsed)
        """Its URL, without the password."""
        self._turn = threading.Lock()
        self._lease: postgres.WriterLease | None = None
        match parsed.get_backend_name():
            case "sqlite":
                self.engine = make_sqlite_engine(parsed)
            case "postgresql" | "postgres":
                self.engine = postgres.make_engine(parsed)
                self._lease = postgres.WriterLease(self.engine, self.name)
            case other:
                problem = f"ledger_url: {other!r} is neither sqlite nor postgresql"
                raise SettingsError(problem, param="ledger_url")
        try:
            self._prepare(writer)
        except DatabaseError as error:
            self.close()
            raise CorruptData(f"{self.name}: cannot be read as a ledger: {error.orig}") from error
        except BaseException:
            self.close()
            raise

    @classmethod
    def at(cls, path: Path) -> "Database":
        """Open the SQLite ledger at `path`, creating its folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{path}")

    def _prepare(self, writer: bool) -> None:
        # Imported here because alembic is slow to import.
        from tuneloop.learner.ledger.migration import is_current, prepare

        with self.read() as connection:
            current = is_current(connection)
        if current and not writer:
            return
        if self._lease is not None:
            with self._errors():
                self._lease.take(LOCK_SECONDS)
        with self.write() as connection:
            before, after = prepare(connection, self.name)
            if self._lease is not None:
                self._lease.number_writer(connection)
        if before not in (None, after):
            logger.info("the ledger was brought from revision %s to %s", before, after)
        if self._lease is not None and not writer:
            self._lease.release()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Begin a transaction that writes: all of it is kept, or nothing if the block raises."""
        with self._turn, self._errors(), self._connected() as plain:
            if self._lease is not None:
                self._lease.renew()
            connection = plain.execution_options(immediate=True)
            with connection.begin():
                if self._lease is not None:
                    self._lease.check(connection)
                yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Begin a transaction that sees one state of the ledger."""
        with self._errors(), self._connected() as connection, connection.begin():
            yield connection

    def erase_log(self) -> None:
        """Write everything into the file of a SQLite ledger, and empty its log.

        The log has older copies of each page, deleted rows too. Waits half a minute for those who
        read, and raises `Unavailable` if they still do.
        """
        if self.engine.dialect.name != "sqlite":
            return
        with self._turn, self._errors(), self.engine.connect() as connection:
            row = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
        if row[0]:
            raise Unavailable(
                "what was deleted is in the log of the ledger until nobody reads it, as a long "
                "export does: ask again then",
                retry_after=30.0,
            )

    def _connected(self) -> Connection:
        """Return a connection; waits for a server that is away for a moment."""
        if self._lease is None:
            return self.engine.connect()
        started = time.monotonic()
        while True:
            try:
                return self.engine.connect()
            except OperationalError as error:
                if time.monotonic() >= started + RECONNECT_SECONDS:
                    raise
                logger.warning("ledger %s: %s; trying again", self.name, error.orig)
                time.sleep(RETRY_SECONDS)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OperationalError, InterfaceError) as error:
            raise Unavailable(f"ledger {self.name}: {error.orig}", retry_after=5) from error

    def fact(self, name: str) -> str | None:
        """Return a fact about the ledger itself, or None."""
        with self.read() as connection:
            query = select(facts.c.value).where(facts.c.name == name)
            return connection.execute(query).scalar_one_or_none()

    def set_fact(self, name: str, value: str) -> None:
        """Store a fact about the ledger, replacing an earlier one."""
        with self.write() as connection:
            connection.execute(facts.delete().where(facts.c.name == name))
            connection.execute(facts.insert().values(name=name, value=value))

    def own_id(self) -> str:
        """Return what tells this ledger and its copies from others; chosen when first asked."""
        found = self.fact(OWN_ID)
        if found is None:
            found = uuid4().hex
            self.set_fact(OWN_ID, found)
        return found

    def belongs_to(self, identity: Mapping[str, str]) -> None:
        """Record what the ledger belongs to; raise `SettingsError` if it belongs to something else.

        `identity` names what must not change under checkpoints and versions: the policy, the base
        model's hash, the kind of weights.
        """
        for name, value in identity.items():
            found = self.fact(name)
            if found is None:
                self.set_fact(name, value)
            elif found != value:
                raise SettingsError(
                    f"{self.name}: made for {name} {found!r}, not {value!r}; "
                    "choose another data directory for another model",
                    param=name,
                )

    def close(self) -> None:
        """Close every connection, and let another learner write."""
        if self._lease is not None:
            self._lease.release()
        self.engine.dispose()


def make_sqlite_engine(url: URL) -> Engine:
    """Return an engine whose commits survive `kill -9` and a power failure."""
    # Errors would quote the parameters of their statement: the texts of a whole batch.
    engine = create_engine(url, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, record: Any) -> None:
        # The events below begin transactions, so the driver must not.
        connection.isolation_level = None
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            # What is deleted is overwritten: a forgotten user's texts would stay in free pages.
            "secure_delete=ON",
            "foreign_keys=ON",
            "busy_timeout=30000",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine
