"""SQLite under the ledger: durable commits, and transactions that begin explicitly."""

from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL


def make_engine(url: URL) -> Engine:
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
            "foreign_keys=ON",
            "busy_timeout=30000",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine
