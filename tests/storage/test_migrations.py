"""Migrations of a database in use: the release before goes on serving, and nothing of it is lost."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
from alembic import command
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import text

from jobs_service.storage import schema
from jobs_service.storage.database import Database
from jobs_service.storage.migrations.locks import build_patiently, change_briefly
from jobs_service.storage.schema import SchemaState
from jobs_service.telemetry.job_gauges import JobGauges
from jobs_service.upkeep.count_jobs import CountJobs
from tests.support.postgres import PostgresServer, connect, open_database
from tests.support.service import wait_until

INDEX = "ix_job_events_transaction_id_event_id"
# As release 0.1.0 writes them.
INSERT = """
WITH new AS (
    INSERT INTO jobs (job_id, run_type, dataset_id, owner_id, creator_id, priority, payload_bytes,
                      run_parameters)
         VALUES (gen_random_uuid(), 'SAMPLING', 1, 1, 1, 0, 2, '{}') RETURNING job_id, create_time)
INSERT INTO job_events (type, job_id, actor_id, actor_soeid, on_behalf_of_id, on_behalf_of_soeid, reason,
                        status_before, status_after, time)
     SELECT 'CREATED', job_id, 1, 'al00001', NULL, NULL, NULL, NULL, 'PENDING', create_time FROM new"""

ALTERING = """
SELECT pid FROM pg_stat_activity WHERE query LIKE 'ALTER TABLE jobs%' AND datname = current_database()"""
MADE = """
SELECT oid, relname, pg_get_indexdef(oid) FROM pg_class WHERE relname LIKE 'ix%jobs%' AND relkind = 'i'
 UNION ALL SELECT oid, conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conname LIKE 'ck_jobs%'
 ORDER BY oid"""
BUILDING = """
SELECT pid FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONC%' AND datname = current_database()"""


@contextmanager
def schema_at(revision: str, postgres: PostgresServer) -> Iterator[tuple[str, Database]]:
    """A database as the release before or a migration that was ended left it."""
    url = postgres.blank_database()
    database = open_database(url)
    with database.engine.connect() as connection:
        command.upgrade(schema._alembic(connection), revision)
    # What the migrations have told their connections is gone too.
    database.engine.dispose()
    yield url, database
    database.close()


@pytest.fixture
def first_schema(postgres: PostgresServer) -> Iterator[tuple[str, Database]]:
    """A database as release 0.1.0 made it."""
    with schema_at("0001", postgres) as made:
        yield made


@pytest.fixture(params=["0001", "0002"])
def older_schema(request: pytest.FixtureRequest, postgres: PostgresServer) -> Iterator[tuple[str, Database]]:
    """A database at each of the revisions whose next one changes a table that is in use."""
    with schema_at(request.param, postgres) as made:
        yield made


def is_valid(sql: psycopg.Connection) -> bool:
    row = sql.execute(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", (INDEX,)
    ).fetchone()
    return row is not None and bool(row[0])


def counted(database: Database) -> int:
    gauges = JobGauges()
    duty = CountJobs(database, gauges)
    while duty.run_once():
        pass
    families = {family.name: family for family in gauges.collect()}
    return int(sum(sample.value for sample in families["jobs_jobs"].samples))


def test_the_release_before_goes_on_writing_while_and_after_its_schema_changes(
    first_schema: tuple[str, Database],
) -> None:
    url, database = first_schema
    done, written = threading.Event(), threading.Semaphore(0)

    def write() -> int:
        number = 0
        with connect(url) as sql:
            sql.execute("SET lock_timeout = '1s'")
            while not done.is_set():
                sql.execute(INSERT)
                written.release()
                number += 1
        return number

    with ThreadPoolExecutor(3) as threads:
        writers = [threads.submit(write) for _ in range(3)]
        try:
            assert all(written.acquire(timeout=10) for _ in range(20))
            schema.migrate(database.engine)
            assert all(written.acquire(timeout=10) for _ in range(20))
        finally:
            done.set()
        jobs = sum(writer.result(30) for writer in writers)
    assert database.schema_report(release="0.1.0").state is SchemaState.READY
    assert counted(database) == jobs
    with connect(url) as sql:
        row = sql.execute("SELECT oldest_release FROM schema_info").fetchone()
    assert row == ("0.1.0",)


def test_a_migration_that_was_ended_in_the_middle_goes_through_the_next_time(
    first_schema: tuple[str, Database],
) -> None:
    url, database = first_schema
    with connect(url) as sql, connect(url) as other, ThreadPoolExecutor(1) as thread:
        other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with other.transaction():
            other.execute("SELECT")
            migrating = thread.submit(schema.migrate, database.engine)
            # It waits for the snapshot that was taken before it.
            (pid,) = wait_until(lambda: sql.execute(BUILDING).fetchone(), 10, "the build")
            sql.execute("SELECT pg_cancel_backend(%s)", (pid,))
            assert migrating.exception(30) is not None
        assert sql.execute("SELECT to_regclass(%s)", (INDEX,)).fetchone() != (None,)
        assert not is_valid(sql)
        schema.migrate(database.engine)
        assert is_valid(sql)


def test_a_long_read_holds_up_the_migration_and_nobody_else(older_schema: tuple[str, Database]) -> None:
    url, database = older_schema
    with connect(url) as reader, connect(url) as sql, ThreadPoolExecutor(1) as thread:
        with reader.transaction():
            # A lock that is in the way of changes to the table itself alone.
            reader.execute("SELECT count(*) FROM jobs")
            migrating = thread.submit(schema.migrate, database.engine)
            wait_until(lambda: sql.execute(ALTERING).fetchone(), 10, "the migration has come so far")
            # No longer than a batch waits for a row.
            sql.execute("SET lock_timeout = '1s'")
            for _ in range(20):
                sql.execute(INSERT)
                sql.execute("SELECT count(*) FROM jobs")
            assert not migrating.done()
        migrating.result(60)
    assert counted(database) == 20


@pytest.mark.parametrize("change", [change_briefly, build_patiently])
def test_a_change_leaves_the_limit_for_locks_as_it_was(
    first_schema: tuple[str, Database], change: Callable[[str], None]
) -> None:
    _, database = first_schema
    engine = database.engine.execution_options(isolation_level="AUTOCOMMIT")
    with schema._session(engine) as connection, Operations.context(MigrationContext.configure(connection)):
        change("ALTER TABLE jobs ALTER COLUMN priority SET DEFAULT 0")
        assert connection.execute(text("SHOW lock_timeout")).scalar_one() == "10s"


def test_a_migration_that_is_run_again_does_only_what_is_missing(database_url: str) -> None:
    database = open_database(database_url)
    with connect(database_url) as sql:
        before = sql.execute(MADE).fetchall()
        sql.execute("UPDATE alembic_version SET version_num = '0002'")
        # Cut off before the old index was dropped, and before the new one had its name.
        sql.execute("ALTER INDEX ix_jobs_dataset_newest RENAME TO ix_jobs_dataset_newest_new")
        sql.execute("CREATE INDEX ix_jobs_dataset_newest ON jobs (dataset_id, create_time DESC)")
        sql.execute("ALTER INDEX ix_jobs_owner_newest RENAME TO ix_jobs_owner_newest_new")
        schema.migrate(database.engine)
        assert sql.execute(MADE).fetchall() == before
    database.close()
