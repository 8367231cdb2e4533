"""Readers of the history in commit order, the jobs counted by one of them, and a trace context with each job.

The previous release goes on serving on it: it writes no run_type and no traceparent, and both may be unset.
Nothing here rewrites or scans a table under a lock that others wait for, and none is waited for long.
"""

from alembic import op

from jobs_service.storage.migrations.locks import build_patiently, change_briefly

revision = "0002"
down_revision = "0001"

_INDEX = "ix_job_events_transaction_id_event_id"
_TABLES = (
    """
    CREATE TABLE event_readers (
        reader TEXT NOT NULL,
        transaction_id xid8 DEFAULT '0'::xid8 NOT NULL,
        event_id BIGINT DEFAULT 0 NOT NULL,
        CONSTRAINT pk_event_readers PRIMARY KEY (reader)
    )
    """,
    """
    CREATE TABLE job_counts (
        run_type TEXT NOT NULL,
        status TEXT NOT NULL,
        jobs BIGINT NOT NULL,
        CONSTRAINT pk_job_counts PRIMARY KEY (run_type, status)
    )
    """,
    # It begins before the first event: upkeep reads the history that is there, a portion at a time.
    "INSERT INTO event_readers (reader) VALUES ('job_counts')",
)


def upgrade() -> None:
    """Change the tables in use one by one, each step such that it may be taken again; then add the new ones."""
    with op.get_context().autocommit_block():
        change_briefly("ALTER TABLE jobs ADD COLUMN IF NOT EXISTS traceparent TEXT")
        change_briefly("ALTER TABLE job_events ADD COLUMN IF NOT EXISTS run_type TEXT")
        # What an attempt left that was ended: an index that is written to and not used.
        build_patiently(f"DROP INDEX CONCURRENTLY IF EXISTS {_INDEX}")
        build_patiently(f"CREATE INDEX CONCURRENTLY {_INDEX} ON job_events (transaction_id, event_id)")
    for statement in _TABLES:
        op.execute(statement)


def downgrade() -> None:
    """Refuse: the previous release runs on this schema."""
    raise RuntimeError("the previous release runs on this schema; there is no need to go back")
