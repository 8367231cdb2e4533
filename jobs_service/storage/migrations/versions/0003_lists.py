"""Indexes for lists: of failed and of cancelled jobs, and with what visibility and a run type need in them.

Release 0.1.0 runs on it: it fails no job, and says of each that it cancels who did it.
"""

from alembic import op

from jobs_service.storage.migrations.locks import build_patiently, change_briefly, index_is_ready

revision = "0003"
down_revision = "0002"

_CONSTRAINTS = {
    "ck_jobs_error_type": "(status = 'FAILED') = (error_type IS NOT NULL)",
    "ck_jobs_cancelled_by_soeid": "(status = 'CANCELLED') = (cancelled_by_soeid IS NOT NULL)",
}
# Word for word as Postgres shows them.
_INDEXES = {
    "ix_jobs_failed_newest": "(create_time DESC, job_id DESC) INCLUDE (dataset_id, owner_id, creator_id, run_type) WHERE (error_type IS NOT NULL)",
    "ix_jobs_cancelled_newest": "(create_time DESC, job_id DESC) INCLUDE (dataset_id, owner_id, creator_id, run_type) WHERE (cancelled_by_soeid IS NOT NULL)",
    "ix_jobs_owner_newest": "(owner_id, create_time DESC, job_id DESC) INCLUDE (dataset_id, creator_id, run_type)",
    "ix_jobs_dataset_newest": "(dataset_id, create_time DESC, job_id DESC) INCLUDE (owner_id, creator_id, run_type)",
    "ix_jobs_external_newest": "(external_id, create_time DESC, job_id DESC) INCLUDE (dataset_id, owner_id, creator_id, run_type) WHERE (external_id IS NOT NULL)",
}


def upgrade() -> None:
    """Build beside the running service: no step holds up a reader or a writer for long.

    Every step may be repeated, for a run that was cut off in the middle: only what is missing is done.
    """
    with op.get_context().autocommit_block():
        for name, condition in _CONSTRAINTS.items():
            _add_constraint(name, condition)
        for name, definition in _INDEXES.items():
            _replace_index(name, definition)


def _add_constraint(name: str, condition: str) -> None:
    found = "SELECT 1 FROM pg_constraint WHERE conrelid = 'jobs'::regclass AND conname = %s"
    if op.get_bind().exec_driver_sql(found, (name,)).first() is None:
        # Valid at once for what is written from now on; only then is the rest looked at.
        change_briefly(f"ALTER TABLE jobs ADD CONSTRAINT {name} CHECK ({condition}) NOT VALID")
    build_patiently(f"ALTER TABLE jobs VALIDATE CONSTRAINT {name}")


def _replace_index(name: str, definition: str) -> None:
    """Build the index under another name first: until then lists use the one that there is."""
    ready = index_is_ready(name, definition)
    if ready or not index_is_ready(f"{name}_new", definition):
        # A build that was cut off leaves an index that no query uses and every write pays for.
        build_patiently(f"DROP INDEX CONCURRENTLY IF EXISTS {name}_new")
    if not ready:
        build_patiently(f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name}_new ON jobs {definition}")
        build_patiently(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        build_patiently(f"ALTER INDEX {name}_new RENAME TO {name}")


def downgrade() -> None:
    """Refuse: an older release runs on this schema as it is."""
    raise RuntimeError("there is no way back and no need for one: release 0.1.0 runs on this schema")
