"""Indexes for lists: of failed and of cancelled jobs, and with what visibility and a run type need in them.

Release 0.1.0 runs on it: it fails no job, and says of each that it cancels who did it.
"""

from alembic import op

revision = "0003"
down_revision = "0002"

_CONSTRAINTS = {
    "ck_jobs_error_type": "(status = 'FAILED') = (error_type IS NOT NULL)",
    "ck_jobs_cancelled_by_soeid": "(status = 'CANCELLED') = (cancelled_by_soeid IS NOT NULL)",
}
_INDEXES = {
    "ix_jobs_failed_newest": "(create_time DESC, job_id DESC) INCLUDE (dataset_id, owner_id, creator_id, run_type) WHERE error_type IS NOT NULL",
    "ix_jobs_cancelled_newest": "(create_time DESC, job_id DESC) INCLUDE (dataset_id, owner_id, creator_id, run_type) WHERE cancelled_by_soeid IS NOT NULL",
    "ix_jobs_owner_newest": "(owner_id, create_time DESC, job_id DESC) INCLUDE (dataset_id, creator_id, run_type)",
    "ix_jobs_dataset_newest": "(dataset_id, create_time DESC, job_id DESC) INCLUDE (owner_id, creator_id, run_type)",
    "ix_jobs_external_newest": "(external_id, create_time DESC, job_id DESC) INCLUDE (dataset_id, owner_id, creator_id, run_type) WHERE external_id IS NOT NULL",
}


def upgrade() -> None:
    """Build beside the running service: no step holds up a reader or a writer for long.

    Every step may be repeated, for a run that was cut off in the middle.
    """
    with op.get_context().autocommit_block():
        for name, condition in _CONSTRAINTS.items():
            op.execute(f"ALTER TABLE jobs DROP CONSTRAINT IF EXISTS {name}")
            # Valid at once for what is written from now on; only then is the rest looked at.
            op.execute(f"ALTER TABLE jobs ADD CONSTRAINT {name} CHECK ({condition}) NOT VALID")
            op.execute(f"ALTER TABLE jobs VALIDATE CONSTRAINT {name}")
        for name, definition in _INDEXES.items():
            # A build that was cut off leaves an index that no query uses and every write pays for.
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}_new")
            op.execute(f"CREATE INDEX CONCURRENTLY {name}_new ON jobs {definition}")
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.execute(f"ALTER INDEX {name}_new RENAME TO {name}")


def downgrade() -> None:
    """Refuse: an older release runs on this schema as it is."""
    raise RuntimeError("there is no way back and no need for one: release 0.1.0 runs on this schema")
