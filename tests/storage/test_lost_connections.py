"""Connections that end, or lead to a server that writes no more: what is run again, what is dropped."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from jobs_service.model.errors import DatabaseUnavailable, TransactionRolledBack
from jobs_service.storage.database import Database, Transaction
from jobs_service.telemetry.metrics import Metrics
from jobs_service.transport.batcher import TRIES, run_again
from tests.support.pgbouncer import running_pgbouncer
from tests.support.postgres import PostgresServer, connect, open_database
from tests.support.service import wait_until

OURS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


class Opened:
    """A database as the service opens it, and the way around it. runs: how often a transaction was begun."""

    def __init__(self, url: str, database: Database) -> None:
        self.url = url
        self.database = database
        self.runs = 0

    def transaction(self, work: Callable[[Transaction], None]) -> None:
        """Run it as the batcher does."""

        def once() -> None:
            self.runs += 1
            with self.database.transaction() as tx:
                work(tx)

        run_again(once, Metrics().batches("test"))

    def end_connections(self) -> None:
        """End every other connection to this database at the server."""
        with connect(self.url) as sql:
            sql.execute(f"SELECT pg_terminate_backend(pid, 5000) {OURS}".encode())

    def written(self) -> list[int]:
        """The data sets that are there."""
        with connect(self.url) as sql:
            return [row[0] for row in sql.execute("SELECT dataset_id FROM datasets ORDER BY 1")]


@pytest.fixture(params=["direct", "pgbouncer"])
def opened(request: pytest.FixtureRequest, postgres_18: PostgresServer) -> Iterator[Opened]:
    """One that a test may use up."""
    url = postgres_18.new_database()
    if request.param == "direct":
        database = open_database(url)
        yield Opened(url, database)
        database.close()
        return
    with running_pgbouncer(url) as pgbouncer:
        database = open_database(pgbouncer.url, pooled=True)
        yield Opened(url, database)
        database.close()


def test_a_connection_that_is_lost_before_commit_is_run_again(opened: Opened) -> None:
    def lose_the_first(tx: Transaction) -> None:
        tx.access.put_dataset(1, "one")
        if opened.runs == 1:
            opened.end_connections()
        tx.access.put_dataset(2, "two")

    opened.transaction(lose_the_first)
    assert (opened.runs, opened.written()) == (2, [1, 2])


def test_a_connection_that_is_lost_again_and_again_is_given_up(opened: Opened) -> None:
    def lose(tx: Transaction) -> None:
        tx.access.put_dataset(1, "one")
        opened.end_connections()
        tx.access.put_dataset(2, "two")

    with pytest.raises(DatabaseUnavailable):
        opened.transaction(lose)
    assert (opened.runs, opened.written()) == (TRIES, [])


def test_a_connection_that_is_lost_at_commit_is_not_run_again(opened: Opened) -> None:
    def lose(tx: Transaction) -> None:
        tx.access.put_dataset(1, "one")
        opened.end_connections()

    with pytest.raises(DatabaseUnavailable) as error:
        opened.transaction(lose)
    assert error.type is DatabaseUnavailable
    assert (opened.runs, opened.written()) == (1, [])


def test_a_deadlock_is_run_again(opened: Opened) -> None:
    for dataset_id in (1, 2):
        opened.transaction(lambda tx, n=dataset_id: tx.access.put_dataset(n, "old"))  # type: ignore[misc] # bound now
    opened.runs = 0
    both = threading.Barrier(2)

    def rename(order: tuple[int, int]) -> None:
        first = True

        def work(tx: Transaction) -> None:
            nonlocal first
            # At once, whatever the server's patience: each finds the other before the lock's limit.
            tx.access._connection.execute(text("SET LOCAL deadlock_timeout = '50ms'"))
            tx.access.put_dataset(order[0], "new")
            if first:
                first = False
                both.wait(10)
            tx.access.put_dataset(order[1], "new")

        opened.transaction(work)

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(rename, order) for order in ((1, 2), (2, 1))]:
            done.result(20)
    assert opened.runs == 3


def test_a_serialization_failure_is_run_again(opened: Opened) -> None:
    opened.transaction(lambda tx: tx.access.put_dataset(1, "old"))
    opened.runs = 0

    def rename(tx: Transaction) -> None:
        tx.access._connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        assert tx.access_list.dataset(1) is not None
        if opened.runs == 1:
            with connect(opened.url) as sql:
                sql.execute("UPDATE datasets SET name = 'theirs'")
        tx.access.put_dataset(1, "ours")

    opened.transaction(rename)
    assert opened.runs == 2


def test_one_lost_connection_empties_the_whole_pool(postgres_18: PostgresServer) -> None:
    opened = Opened(url := postgres_18.new_database(), open_database(url, pool_size=4))
    with ThreadPoolExecutor(4) as threads:
        together = threading.Barrier(4)

        def read() -> None:
            with opened.database.one_statement() as tx:
                tx.access.is_empty()
                together.wait(10)

        for done in [threads.submit(read) for _ in range(4)]:
            done.result(20)
    opened.end_connections()
    # One finds out, and is run again; nobody after it does.
    opened.transaction(lambda tx: tx.access.put_dataset(1, "one"))
    assert opened.runs == 2
    together = threading.Barrier(4)
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(read) for _ in range(4)]:
            done.result(20)
    opened.database.close()


@contextmanager
def fenced_off(url: str) -> Iterator[None]:
    """The server writes no more, as an old primary that a tool has fenced off."""
    with connect(url) as sql:
        try:
            sql.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            sql.execute("SELECT pg_reload_conf()")
            wait_until(lambda: _read_only(url), 10, "the server is read-only")
            yield
        finally:
            sql.execute("SET default_transaction_read_only = off")
            sql.execute("ALTER SYSTEM RESET default_transaction_read_only")
            sql.execute("SELECT pg_reload_conf()")
            wait_until(lambda: not _read_only(url), 10, "the server writes")


def _read_only(url: str) -> bool:
    with connect(url) as sql:
        return sql.execute("SHOW transaction_read_only").fetchone() == ("on",)


def test_no_write_goes_to_a_server_that_is_read_only_and_they_go_on_after_it(
    postgres_18: PostgresServer,
) -> None:
    opened = Opened(url := postgres_18.new_database(), open_database(url))
    opened.transaction(lambda tx: tx.access.put_dataset(1, "one"))
    opened.runs = 0
    with fenced_off(url), pytest.raises(DatabaseUnavailable) as error:
        opened.transaction(lambda tx: tx.access.put_dataset(2, "two"))
    # Where it was still in the pool, the connection is dropped, and no new one is made.
    assert error.type is DatabaseUnavailable
    assert opened.runs <= 2
    opened.transaction(lambda tx: tx.access.put_dataset(3, "three"))
    assert opened.written() == [1, 3]
    opened.database.close()


def test_reads_alone_leave_a_server_that_is_read_only(postgres_18: PostgresServer) -> None:
    opened = Opened(url := postgres_18.new_database(), open_database(url))

    def read() -> bool:
        try:
            with opened.database.one_statement() as tx:
                tx.access.is_empty()
        except DatabaseUnavailable:
            return False
        return True

    assert read()
    with fenced_off(url):
        # The server says so with the first answer.
        read()
        assert not read()
    assert read()
    opened.database.close()


def test_a_pool_without_a_free_connection_is_an_unavailable_database(postgres_18: PostgresServer) -> None:
    database = open_database(postgres_18.new_database(), pool_size=1)
    with database.transaction(), pytest.raises(DatabaseUnavailable), database.transaction():
        pass
    database.close()


def test_a_transaction_that_took_its_whole_time_is_not_run_again(postgres_18: PostgresServer) -> None:
    url = postgres_18.new_database()
    opened = Opened(url, open_database(url, statement_seconds=0.5))

    def wait_and_lose(tx: Transaction) -> None:
        for _ in range(2):
            tx.access._connection.execute(text("SELECT pg_sleep(0.3)"))
        opened.end_connections()
        tx.access.is_empty()

    with pytest.raises(DatabaseUnavailable) as error:
        opened.transaction(wait_and_lose)
    assert not isinstance(error.value, TransactionRolledBack)
    assert opened.runs == 1
    opened.database.close()
