"""What alembic runs: the revisions, on the connection and in the transaction it is given."""

from alembic import context

from tuneloop.learner.ledger.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
