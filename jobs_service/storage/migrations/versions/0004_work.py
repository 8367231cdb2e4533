"""What workers need: a queue, leases, attempts, dependencies, limits; and a history of access.

Release 0.1.0 goes on serving on it. It makes jobs without a turn, which upkeep puts into the queue, and when
it cancels it leaves rows of the queue and of leases behind, which claims, heartbeats and the sweep pass over.
"""

from alembic import op

from jobs_service.storage.migrations.locks import build_patiently, change_briefly, index_is_ready

revision = "0004"
down_revision = "0003"

_COLUMNS = (
    "turn BIGINT",
    "claims INTEGER DEFAULT 0 NOT NULL",
    "lease_token UUID",
    "attempt_budget INTEGER DEFAULT 1 NOT NULL",
    "releases INTEGER DEFAULT 0 NOT NULL",
    "run_timeout INTERVAL",
    "retry_initial INTERVAL",
    "retry_max INTERVAL",
    "retry_multiplier DOUBLE PRECISION",
    "dependencies INTEGER DEFAULT 0 NOT NULL",
    "keep_waiting BOOLEAN DEFAULT false NOT NULL",
)
# Word for word as Postgres shows them.
_INDEXES = {
    "ix_jobs_ended": "(end_time) WHERE (end_time IS NOT NULL)",
    "ix_jobs_without_turn": "(create_time) WHERE ((turn IS NULL) AND (end_time IS NULL))",
}
_EVENT_TYPES = (
    "type IN ('ATTEMPT_FAILED', 'CANCELLED', 'CLAIMED', 'COMPLETED', 'CREATED', 'FAILED', 'LEASE_EXPIRED',"
    " 'RELEASED', 'RETRIED', 'RUN_TIMED_OUT')"
)
_NEW = (
    *(
        f"CREATE SEQUENCE IF NOT EXISTS job_turn_{run_type} START WITH 0 MINVALUE 0"
        for run_type in ("import", "sampling", "exploration", "sql_transform")
    ),
    """
    CREATE TABLE IF NOT EXISTS job_queue (
        job_id UUID NOT NULL,
        run_type TEXT NOT NULL,
        neg_priority INTEGER NOT NULL,
        turn BIGINT NOT NULL,
        dataset_id BIGINT NOT NULL,
        payload_bytes INTEGER NOT NULL,
        available_time TIMESTAMP WITH TIME ZONE NOT NULL,
        ready BOOLEAN NOT NULL,
        limited BOOLEAN NOT NULL,
        held BOOLEAN NOT NULL,
        CONSTRAINT pk_job_queue PRIMARY KEY (job_id)
    )
    """,
    "CREATE INDEX IF NOT EXISTS ix_job_queue_due ON job_queue (available_time) WHERE NOT ready",
    """
    CREATE INDEX IF NOT EXISTS ix_job_queue_held ON job_queue (dataset_id, neg_priority, turn, job_id)
     WHERE ready AND held
    """,
    "CREATE INDEX IF NOT EXISTS ix_job_queue_last_turn ON job_queue (dataset_id, run_type, turn)",
    """
    CREATE INDEX IF NOT EXISTS ix_job_queue_order ON job_queue (run_type, neg_priority, turn, job_id)
     WHERE ready AND NOT held
    """,
    "CREATE INDEX IF NOT EXISTS ix_job_queue_placed ON job_queue (dataset_id) WHERE limited AND ready AND NOT held",
    """
    CREATE TABLE IF NOT EXISTS job_leases (
        job_id UUID NOT NULL,
        claim INTEGER NOT NULL,
        attempt INTEGER NOT NULL,
        lease_token UUID NOT NULL,
        worker_id TEXT NOT NULL,
        dataset_id BIGINT NOT NULL,
        limited BOOLEAN NOT NULL,
        start_time TIMESTAMP WITH TIME ZONE NOT NULL,
        lease_expire_time TIMESTAMP WITH TIME ZONE NOT NULL,
        lease_duration INTERVAL NOT NULL,
        run_deadline TIMESTAMP WITH TIME ZONE NOT NULL,
        CONSTRAINT pk_job_leases PRIMARY KEY (job_id)
    )
    """,
    "CREATE INDEX IF NOT EXISTS ix_job_leases_expiry ON job_leases (lease_expire_time)",
    "CREATE INDEX IF NOT EXISTS ix_job_leases_placed ON job_leases (dataset_id) WHERE limited",
    """
    CREATE TABLE IF NOT EXISTS job_attempts (
        job_id UUID NOT NULL,
        claim INTEGER NOT NULL,
        number INTEGER NOT NULL,
        lease_token UUID NOT NULL,
        worker_id TEXT NOT NULL,
        start_time TIMESTAMP WITH TIME ZONE NOT NULL,
        end_time TIMESTAMP WITH TIME ZONE NOT NULL,
        outcome TEXT NOT NULL CONSTRAINT ck_job_attempts_outcome CHECK (outcome IN ('CANCELLED', 'COMPLETED', 'FAILED', 'LEASE_EXPIRED', 'RELEASED', 'RUN_TIMED_OUT')),
        error_type TEXT,
        error_message TEXT,
        error_retryable BOOLEAN,
        will_retry BOOLEAN NOT NULL,
        CONSTRAINT pk_job_attempts PRIMARY KEY (job_id, claim)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS job_dependencies (
        job_id UUID NOT NULL,
        depends_on_job_id UUID NOT NULL,
        CONSTRAINT pk_job_dependencies PRIMARY KEY (job_id, depends_on_job_id)
    )
    """,
    """
    CREATE INDEX IF NOT EXISTS ix_job_dependencies_depends_on_job_id_job_id ON job_dependencies (depends_on_job_id, job_id)
    """,
    """
    CREATE TABLE IF NOT EXISTS ended_dependencies (
        job_id UUID NOT NULL,
        after_job_id UUID,
        CONSTRAINT pk_ended_dependencies PRIMARY KEY (job_id)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS dataset_limits (
        dataset_id BIGINT NOT NULL,
        max_running INTEGER NOT NULL CONSTRAINT ck_dataset_limits_max_running CHECK (max_running > 0),
        CONSTRAINT pk_dataset_limits PRIMARY KEY (dataset_id),
        CONSTRAINT fk_dataset_limits_dataset_id FOREIGN KEY(dataset_id) REFERENCES datasets (dataset_id) ON DELETE CASCADE
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS deleted_datasets (
        dataset_id BIGINT NOT NULL,
        delete_time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        actor_id BIGINT NOT NULL,
        actor_soeid TEXT NOT NULL,
        CONSTRAINT pk_deleted_datasets PRIMARY KEY (dataset_id)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS access_events (
        event_id BIGINT GENERATED BY DEFAULT AS IDENTITY,
        type TEXT NOT NULL CONSTRAINT ck_access_events_type CHECK (type IN ('DATASET_DELETED', 'DATASET_LIMITED', 'DATASET_PUT', 'PERMISSION_GRANTED', 'PERMISSION_REVOKED', 'RUN_TYPE_GRANTED', 'RUN_TYPE_REVOKED', 'USER_DELETED', 'USER_PUT')),
        actor_id BIGINT,
        actor_soeid TEXT,
        user_id BIGINT,
        user_soeid TEXT,
        dataset_id BIGINT,
        value TEXT,
        time TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT pk_access_events PRIMARY KEY (event_id)
    )
    """,
)
# A database whose users were made for a release without sequences of its own.
_LET_TAKE_TURNS = """
DO $$
DECLARE taker RECORD;
BEGIN
    FOR taker IN SELECT DISTINCT grantee, turns.oid::regclass AS turns
                   FROM pg_class made, aclexplode(made.relacl) allowed, pg_class turns
                  WHERE made.oid = 'jobs'::regclass AND allowed.privilege_type = 'INSERT'
                    AND allowed.grantee <> 0 AND allowed.grantee <> made.relowner
                    AND turns.relkind = 'S' AND turns.relname LIKE 'job\\_turn\\_%'
                    AND turns.relnamespace = made.relnamespace
    LOOP
        EXECUTE format('GRANT SELECT, UPDATE ON SEQUENCE %s TO %s', taker.turns, taker.grantee::regrole);
    END LOOP;
END $$
"""


def upgrade() -> None:
    """Change the tables in use one by one, each step such that it may be taken again; then add the new ones."""
    with op.get_context().autocommit_block():
        for column in _COLUMNS:
            change_briefly(f"ALTER TABLE jobs ADD COLUMN IF NOT EXISTS {column}")
        # Room in each page for the claims of its jobs, which then touch no index.
        change_briefly("ALTER TABLE jobs SET (fillfactor = 85)")
        _allow_event_types()
        for name, definition in _INDEXES.items():
            if index_is_ready(name, definition):
                continue
            # What an attempt left that was ended: an index that is written to and not used.
            build_patiently(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            build_patiently(f"CREATE INDEX CONCURRENTLY {name} ON jobs {definition}")
    for statement in _NEW:
        op.execute(statement)
    op.get_bind().exec_driver_sql(_LET_TAKE_TURNS.replace("%", "%%"))


def _allow_event_types() -> None:
    change_briefly(
        "ALTER TABLE job_events DROP CONSTRAINT IF EXISTS ck_job_events_type,"
        f" ADD CONSTRAINT ck_job_events_type CHECK ({_EVENT_TYPES}) NOT VALID"
    )
    build_patiently("ALTER TABLE job_events VALIDATE CONSTRAINT ck_job_events_type")


def downgrade() -> None:
    """Refuse: the previous release runs on this schema."""
    raise RuntimeError("the previous release runs on this schema; there is no need to go back")
