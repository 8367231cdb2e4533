"""Migrations: they make what the code believes, and any number of replicas may run them at once."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from jobs_service.model.caller import Level, Role
from jobs_service.model.job import JobStatus, RunType
from jobs_service.model.states import EventType
from jobs_service.storage import schema
from jobs_service.storage.database import Database
from jobs_service.storage.driver_errors import MigrationHeldUp
from jobs_service.storage.queue_tables import job_queue
from jobs_service.storage.schema import MigrationLockTimeout, SchemaState
from tests.support.postgres import PostgresServer, connect, open_database
from tests.support.service import wait_until

metadata = job_queue.metadata

_CONSTRAINTS = """
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
 WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'alembic_version'
"""
_INDEXES = """
SELECT tablename, indexname, indexdef FROM pg_indexes
 WHERE schemaname = 'public' AND tablename <> 'alembic_version'
"""

_LIMITS = """
SELECT name FROM pg_settings WHERE name IN ('statement_timeout', 'transaction_timeout',
    'idle_session_timeout', 'idle_in_transaction_session_timeout')"""
_WAITING = """
SELECT pid FROM pg_stat_activity
 WHERE wait_event_type = 'Lock' AND query LIKE '%CREATE TABLE jobs%' AND datname = current_database()"""


@pytest.fixture
def blank(postgres: PostgresServer) -> Iterator[tuple[str, Database]]:
    url = postgres.blank_database()
    database = open_database(url)
    yield url, database
    database.close()


def _described(url: str) -> set[tuple[str, ...]]:
    with connect(url) as connection:
        rows = [*connection.execute(_CONSTRAINTS.encode()), *connection.execute(_INDEXES.encode())]
    return {tuple(row) for row in rows}


@pytest.mark.filterwarnings("ignore:Did not recognize type .xid8.")
def test_migrations_make_what_the_code_believes(
    blank: tuple[str, Database], postgres: PostgresServer, database_url: str
) -> None:
    url, database = blank
    metadata.create_all(database.engine)
    assert _described(database_url) == _described(url)
    migrated = open_database(database_url)
    with migrated.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []
    migrated.close()


def test_replicas_that_migrate_at_once_do_it_once(blank: tuple[str, Database]) -> None:
    url, _ = blank
    failures: list[Exception] = []
    start = threading.Barrier(8)

    def replica() -> None:
        database = open_database(url)
        try:
            start.wait()
            schema.migrate(database.engine)
        except Exception as error:
            failures.append(error)
        finally:
            database.close()

    threads = [threading.Thread(target=replica) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_migration_waits_only_so_long_for_another(blank: tuple[str, Database]) -> None:
    url, database = blank
    with connect(url) as other:
        other.execute("SELECT pg_advisory_lock(%s)", (schema._LOCK_KEY,))
        with pytest.raises(MigrationLockTimeout):
            schema.migrate(database.engine, wait_seconds=0.3)
    schema.migrate(database.engine, wait_seconds=10)


def test_whoever_waits_for_the_lock_holds_no_snapshot(blank: tuple[str, Database]) -> None:
    url, database = blank
    with connect(url) as other:
        other.execute("SELECT pg_advisory_lock(%s)", (schema._LOCK_KEY,))
        waiting = threading.Thread(target=schema.migrate, args=(database.engine,))
        waiting.start()
        other.execute("CREATE TABLE busy (n int)")
        # Would wait for ever for a session that is blocked within a statement.
        other.execute("SET statement_timeout = '20s'")
        other.execute("CREATE INDEX CONCURRENTLY ON busy (n)")
        other.execute("SELECT pg_advisory_unlock_all()")
        waiting.join(30)
        assert not waiting.is_alive()


def test_no_limit_of_the_database_ends_a_migration(blank: tuple[str, Database]) -> None:
    url, database = blank
    with connect(url) as sql:
        for (name,) in sql.execute(_LIMITS).fetchall():
            sql.execute(f"ALTER DATABASE {sql.info.dbname} SET {name} = '1min'".encode())
    with schema._session(database.engine) as connection:
        left = connection.execute(text(f"{_LIMITS} AND setting <> '0'")).all()
    assert left == []


def test_a_migration_in_a_deadlock_is_rolled_back_and_may_be_run_again(blank: tuple[str, Database]) -> None:
    url, database = blank
    with connect(url) as other, ThreadPoolExecutor(1) as thread:
        # So that it is the migration that finds the deadlock.
        other.execute("SET deadlock_timeout = '1min'")
        with other.transaction(force_rollback=True):
            other.execute("CREATE TABLE jobs ()")
            migrating = thread.submit(schema.migrate, database.engine)
            with connect(url) as sql:
                wait_until(lambda: sql.execute(_WAITING).fetchone(), 10, "the migration waits")
            other.execute("CREATE TABLE users ()")
            error = migrating.exception(30)
    assert type(error) is MigrationHeldUp
    assert "(deadlock detected): run it again" in str(error)
    schema.migrate(database.engine)


def test_a_blank_database_is_behind(blank: tuple[str, Database]) -> None:
    report = blank[1].schema_report(release="0.1.0")
    assert (report.state, report.found) == (SchemaState.BEHIND, None)


@pytest.mark.parametrize(
    ("revision", "oldest_release", "state"),
    [
        ("0001", "0.1.0", SchemaState.BEHIND),
        (schema._revisions()[1], "0.1.0", SchemaState.READY),
        ("9999", "0.1.0", SchemaState.READY),
        ("9999", "0.2.0", SchemaState.TOO_NEW),
        ("9999", "0.10.0", SchemaState.TOO_NEW),
    ],
)
def test_a_newer_schema_says_who_may_stay(
    database_url: str, revision: str, oldest_release: str, state: SchemaState
) -> None:
    with connect(database_url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = %s", (revision,))
        connection.execute("UPDATE schema_info SET oldest_release = %s", (oldest_release,))
    database = open_database(database_url)
    assert database.schema_report(release="0.1.0").state is state
    database.close()


def test_a_migration_that_was_cut_off_is_run_again(database_url: str) -> None:
    before = _described(database_url)
    with connect(database_url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0002'")
        # What a CREATE INDEX CONCURRENTLY leaves behind, and one that came to nothing at all.
        connection.execute("CREATE INDEX ix_jobs_failed_newest_new ON jobs (job_id)")
        connection.execute("DROP INDEX ix_jobs_owner_newest")
        connection.execute("ALTER TABLE jobs DROP CONSTRAINT ck_jobs_error_type")
    database = open_database(database_url)
    schema.migrate(database.engine)
    database.close()
    assert _described(database_url) == before


def _words(connection: psycopg.Connection, table: str, column: str) -> set[str]:
    """The words that the database takes in a column, out of its check constraint."""
    row = connection.execute(
        """SELECT pg_get_constraintdef(oid) FROM pg_constraint
            WHERE conrelid = %s::regclass AND conname = %s""",
        (table, f"ck_{table}_{column}"),
    ).fetchone()
    assert row is not None
    return {part.strip("'") for part in row[0].replace("'::text", "'").split("'")[1::2]}


def test_the_database_and_the_model_know_the_same_words(database_url: str) -> None:
    with connect(database_url) as connection:
        assert _words(connection, "jobs", "status") == {status.value for status in JobStatus}
        assert _words(connection, "jobs", "run_type") == {run_type.value for run_type in RunType}
        assert _words(connection, "run_type_grants", "run_type") == {kind.value for kind in RunType}
        assert _words(connection, "dataset_permissions", "level") == {level.word for level in Level}
        assert _words(connection, "job_events", "type") == {event.value for event in EventType}
        roles = {row[0] for row in connection.execute("SELECT role FROM roles")}
        assert roles == {role.value for role in Role}


def test_the_database_refuses_a_terminal_job_without_an_end(database_url: str) -> None:
    with connect(database_url) as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(
            """INSERT INTO jobs (job_id, run_type, status, dataset_id, owner_id, creator_id, priority,
                                 payload_bytes, run_parameters)
               VALUES (gen_random_uuid(), 'IMPORT', 'COMPLETED', 1, 1, 1, 0, 2, '{}')"""
        )
