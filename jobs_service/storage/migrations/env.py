"""What Alembic runs: the migrations, on the connection that storage.schema hands over."""

from alembic import context

from jobs_service.storage.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # Each migration commits by itself, so that one may build an index concurrently.
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
