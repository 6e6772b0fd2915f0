"""Postgres under the ledger: connections that notice a dead peer, and one writer at a time.

The writer holds an advisory lock of the database while its session lasts. A session can end while
its process goes on (the database restarts, the network breaks), and another learner may then take
the lock. So each writer that takes it also raises a number in the ledger, and every write checks
that the number is still its own. Two learners can never both write to one ledger.
"""

import logging
import time
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, insert, select, update
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.functions import func

from tuneloop.errors import FailedPrecondition, SettingsError
from tuneloop.learner.ledger.schema import facts

logger = logging.getLogger("tuneloop.learner.ledger")

DRIVER = "postgresql+psycopg"
LOCK = int.from_bytes(b"tuneloop")
WRITER = "writer"
"""Fact of the ledger: the number of its last writer."""
CONNECT_SECONDS = 5
KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
"""Seconds and probes, set at both ends: the lock of a machine that vanished is free again within
half a minute."""


def make_engine(url: URL) -> Engine:
    """Return an engine on psycopg; raises `SettingsError` if that is not installed."""
    of_server = " ".join(f"-c tcp_{name}={value}" for name, value in KEEPALIVE.items())
    options: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, "options": of_server}
    try:
        return create_engine(
            url.set(drivername=DRIVER),
            # A read sees one state of the ledger from start to end.
            isolation_level="REPEATABLE READ",
            # Errors would quote the parameters of their statement: the texts of a whole batch.
            hide_parameters=True,
            pool_pre_ping=True,
            connect_args=options | KEEPALIVE,
        )
    except ModuleNotFoundError as error:
        problem = 'a ledger on Postgres needs psycopg: pip install "tuneloop[postgres]"'
        raise SettingsError(problem, param="ledger_url") from error


class WriterLease:
    """The right to write, from `take` until `release` or the end of the process."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name
        self._session: Connection | None = None
        self._number: str | None = None

    def take(self, wait_seconds: float) -> None:
        """Take the lock; waits for a learner that is stopping.

        Raises `FailedPrecondition` if another learner holds it.
        """
        session = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        deadline = time.monotonic() + wait_seconds
        while not session.execute(select(func.pg_try_advisory_lock(LOCK))).scalar_one():
            if time.monotonic() >= deadline:
                session.close()
                raise FailedPrecondition(
                    f"another learner works on the ledger {self._name}; stop it first"
                )
            time.sleep(0.1)
        self._session = session

    def number_writer(self, connection: Connection) -> None:
        """Lock all earlier writers out: their number is no longer the newest."""
        query = select(facts.c.value).where(facts.c.name == WRITER)
        last = connection.execute(query).scalar_one_or_none()
        self._number = str(int(last or 0) + 1)
        if last is None:
            connection.execute(insert(facts).values(name=WRITER, value=self._number))
        else:
            known = update(facts).where(facts.c.name == WRITER)
            connection.execute(known.values(value=self._number))

    def check(self, connection: Connection) -> None:
        """Raise `FailedPrecondition` if another writer took over; none can until the commit."""
        if self._number is None:
            return
        query = select(facts.c.value).where(facts.c.name == WRITER).with_for_update(read=True)
        if connection.execute(query).scalar_one_or_none() != self._number:
            raise FailedPrecondition(
                f"another learner has taken the ledger {self._name} over; this one stops"
            )

    def renew(self) -> None:
        """Take the lock again if its session ended. Raises `FailedPrecondition`."""
        if self._session is None:
            return
        try:
            self._session.execute(select(1))
        except DBAPIError:
            self.release()
            self.take(0.0)
            logger.warning("the lock of the ledger was lost and taken again")

    def release(self) -> None:
        """Let another learner write."""
        session, self._session = self._session, None
        if session is not None:
            # Close the connection itself: in the pool it would keep the lock.
            session.invalidate()
            session.close()
