"""Migrate a ledger to the current schema, in place and in one transaction.

Each change of `schema` is a revision in `migrations/versions`, one after another; alembic records
in the ledger which one it is at. The rules of samples and votes are the current ones, so they are
applied last, to the current tables. A crash in the middle leaves the ledger as it was.
"""

import threading
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, delete, func, inspect, select

from tuneloop.errors import CorruptData, SettingsError
from tuneloop.learner.ledger.events.sample_rules import ranked_completions, samples_of
from tuneloop.learner.ledger.events.verdict_rules import settle_siblings, settle_votes
from tuneloop.learner.ledger.rows import insert_new
from tuneloop.learner.ledger.schema import facts, feedback, metadata, rankings, rollouts, samples

FOLDER = Path(__file__).with_name("migrations")
OLD_FACT = "schema_version"
"""The fact that numbered ledgers before alembic did."""
OLD_REVISIONS = {
    "1": "0001_first",
    "2": "0002_all_kinds_of_feedback",
    "3": "0003_feedback_ends",
}
ONLY_KEPT = ("ranking", "demonstration", "rating")
"""Kinds of feedback that the first revision stored without making samples of them."""

_alembic = threading.Lock()
"""Held while alembic works: its operations are module globals."""


def is_current(connection: Connection) -> bool:
    """Return whether the ledger is at the newest revision."""
    return MigrationContext.configure(connection).get_current_revision() == newest()


def prepare(connection: Connection, name: str) -> tuple[str | None, str]:
    """Create the tables or migrate them; return the revisions before and after.

    `name` is that of the ledger, for messages. Raises `CorruptData` for a database that is not a
    ledger, and `SettingsError` for a ledger of a newer release.
    """
    with _alembic:
        scripts, head = revisions(), newest()
        known = set(inspect(connection).get_table_names())
        if not known:
            metadata.create_all(connection)
            MigrationContext.configure(connection).stamp(scripts, head)
            return None, head
        if "facts" not in known:
            raise CorruptData(f"{name}: a database, but not a ledger")
        found = revision_of(connection, scripts)
        if found not in {script.revision for script in scripts.walk_revisions()}:
            raise SettingsError(
                f"{name}: a ledger of revision {found}, this learner reads revisions up to {head}; "
                "use another data directory or a newer release"
            )
        if found != head:
            command.upgrade(configuration(connection), head)
            if found == "0001_first":
                learn_from_all(connection)
            settle_all_siblings(connection)
    return found, head


@cache
def revisions() -> ScriptDirectory:
    """Return the revisions; to read all of them takes longer than to create the tables."""
    return ScriptDirectory(str(FOLDER))


@cache
def newest() -> str:
    """Return the revision of a new ledger."""
    head = revisions().get_current_head()
    assert head is not None
    return head


def configuration(connection: Connection) -> Config:
    """Return alembic's configuration for this connection."""
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def revision_of(connection: Connection, scripts: ScriptDirectory) -> str | None:
    """Return the ledger's revision; a ledger from before alembic is stamped with one."""
    context = MigrationContext.configure(connection)
    found = context.get_current_revision()
    if found is not None:
        return found
    numbered = select(facts.c.value).where(facts.c.name == OLD_FACT)
    number = connection.execute(numbered).scalar_one_or_none()
    revision = OLD_REVISIONS.get(number or "")
    if revision is None:
        return number
    context.stamp(scripts, revision)
    # A release that reads only numbered ledgers refuses one without a number, and says so.
    connection.execute(delete(facts).where(facts.c.name == OLD_FACT))
    return revision


def learn_from_all(connection: Connection) -> None:
    """Make samples of feedback that was only stored, then apply the rules of verdicts."""
    kept = (
        select(feedback)
        .where(feedback.c.kind.in_(ONLY_KEPT))
        .order_by(feedback.c.accepted_time, feedback.c.feedback_id)
    )
    for row in connection.execute(kept).mappings().all():
        values = dict(row)
        insert_new(connection, rankings, ranked_completions(values), ("feedback_id", "position"))
        made = samples_of(values, values["accepted_time"])
        insert_new(connection, samples, made, ("sample_id", "objective"))
    spoken_of = (samples.c.objective, samples.c.topic, samples.c.user_hash)
    several = select(*spoken_of).where(samples.c.topic != "").group_by(*spoken_of)
    for objective, topic, user_hash in connection.execute(several.having(func.count() > 1)).all():
        settle_votes(connection, objective, topic, user_hash)


def settle_all_siblings(connection: Connection) -> None:
    """Apply the rules of pairs of opposite thumbs to every request that has some."""
    groups = (
        select(rollouts.c.group_id)
        .join(samples, samples.c.completion_id == rollouts.c.completion_id)
        .where(samples.c.kind == "siblings")
        .distinct()
    )
    for group_id in connection.execute(groups).scalars().all():
        settle_siblings(connection, group_id, 0.0)
