"""Through PgBouncer in transaction mode: each transaction has our settings, and nobody else's."""

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import text

from jobs_service.model.errors import DatabaseUnavailable, DeadlineExceeded
from jobs_service.storage.database import Database, Transaction
from jobs_service.storage.driver_errors import UnusableDatabaseUrl
from tests.support.pgbouncer import PgBouncer, running_pgbouncer
from tests.support.postgres import PostgresServer, connect, open_database

OURS = {
    "statement_timeout": "10s",
    "lock_timeout": "1s",
    "idle_in_transaction_session_timeout": "20s",
    "timezone": "UTC",
    "transaction_isolation": "read committed",
}
HOSTILE = {
    "search_path": "pg_catalog",
    "lock_timeout": "'1ms'",
    "idle_in_transaction_session_timeout": "'1ms'",
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "serializable",
    "synchronous_commit": "off",
    "timezone": "'Asia/Tokyo'",
    "plan_cache_mode": "force_generic_plan",
    "role": "pg_monitor",
    # The last one, it is for the other application too.
    "statement_timeout": "'50ms'",
}


@pytest.fixture
def pgbouncer(postgres: PostgresServer) -> Iterator[PgBouncer]:
    """One with a single connection to the server, which all its clients have in turn."""
    url = postgres.new_database()
    with running_pgbouncer(url, default_pool_size=1) as running:
        yield running


@pytest.fixture
def database(pgbouncer: PgBouncer) -> Iterator[Database]:
    """The same database as the service opens it."""
    database = open_database(pgbouncer.url, pooled=True)
    yield database
    database.close()


def shown(tx: Transaction, names: dict[str, str]) -> dict[str, str]:
    """What the server says of these settings."""
    return {name: tx.jobs._connection.execute(text(f"SHOW {name}")).scalar_one() for name in names}


def of_session(client: psycopg.Connection, names: dict[str, str]) -> dict[str, str]:
    """The same for another application."""
    return {name: client.execute(f"SHOW {name}".encode()).fetchone()[0] for name in names}  # type: ignore[index] # a row


def test_our_limits_hold_in_every_transaction(database: Database) -> None:
    for block in (database.transaction, database.one_statement, database.transaction):
        with block() as tx:
            assert shown(tx, OURS) == OURS
    with database.snapshot(seconds=3) as tx:
        assert shown(tx, OURS) == OURS | {
            "statement_timeout": "3s",
            "transaction_isolation": "repeatable read",
        }
        of_reads = {"transaction_read_only": "on", "plan_cache_mode": "force_custom_plan", "jit": "off"}
        assert shown(tx, of_reads) == of_reads


def test_a_read_that_takes_too_long_is_ended_by_the_server(database: Database) -> None:
    def read_for_long() -> None:
        with database.snapshot(seconds=0.2) as tx:
            tx.jobs._connection.execute(text("SELECT pg_sleep(20)"))

    with pytest.raises(DeadlineExceeded):
        read_for_long()


def test_nothing_of_ours_is_left_for_the_next_client(pgbouncer: PgBouncer, database: Database) -> None:
    with pgbouncer.client() as other:
        before = of_session(other, HOSTILE)
        with database.transaction() as tx:
            tx.access.put_dataset(1, "one")
        with database.snapshot(seconds=3) as tx:
            assert tx.access_list.dataset(1)
        assert of_session(other, HOSTILE) == before
        row = other.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()
        assert row == (0,)


def test_what_another_application_has_set_does_us_no_harm(pgbouncer: PgBouncer, database: Database) -> None:
    with pgbouncer.client() as other:
        for name, value in HOSTILE.items():
            other.execute(f"SET {name} = {value}".encode())
        with database.transaction() as tx:
            assert shown(tx, OURS) == OURS
            tx.jobs._connection.execute(text("SELECT pg_sleep(0.1)"))
            tx.access.put_dataset(1, "one")
            assert shown(tx, {"synchronous_commit": ""}) == {"synchronous_commit": "on"}
        with database.one_statement() as tx:
            assert tx.access_list.dataset(1)
        with database.snapshot(seconds=3) as tx:
            assert tx.access_list.dataset(1)


def test_a_server_that_is_fenced_off_stays_so(pgbouncer: PgBouncer, database: Database) -> None:
    with connect(pgbouncer.direct_url) as sql:
        fence = f"ALTER DATABASE {sql.info.dbname} SET default_transaction_read_only = on"
        sql.execute(fence.encode())
    pgbouncer.admin("RECONNECT")

    def write() -> None:
        with database.transaction() as tx:
            tx.access.put_dataset(1, "one")

    with pytest.raises(DatabaseUnavailable):
        write()
    with database.one_statement() as tx:
        assert not tx.access_list.dataset(1)


def test_a_pooler_that_is_not_announced_is_refused_by_the_name_of_the_setting(pgbouncer: PgBouncer) -> None:
    database = open_database(pgbouncer.url)
    with pytest.raises(UnusableDatabaseUrl, match="JOBS_DIRECT_DATABASE_URL"):
        database.schema_report(release="0.1.0")
    database.close()


def test_a_pooler_that_ignores_what_it_is_asked_for_is_noticed(postgres_18: PostgresServer) -> None:
    url = postgres_18.new_database()
    with running_pgbouncer(url, ignore_startup_parameters="options") as pgbouncer:
        database = open_database(pgbouncer.url)
        with pytest.raises(UnusableDatabaseUrl, match="JOBS_DIRECT_DATABASE_URL"):
            database.schema_report(release="0.1.0")
        database.close()


def test_a_url_with_options_is_none_for_a_pooler() -> None:
    with pytest.raises(ValueError, match="ALTER ROLE"):
        open_database("postgresql://db/jobs?options=-cwork_mem=1MB", pooled=True)
