"""Connections and transactions."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, Engine, bindparam, func, select
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from jobs_service.model.errors import DatabaseUnavailable, DeadlineExceeded, JobsError, TransactionRolledBack
from jobs_service.model.news import News
from jobs_service.storage import driver_errors
from jobs_service.storage.access_events import AccessEvents
from jobs_service.storage.access_list import AccessList
from jobs_service.storage.access_store import AccessStore
from jobs_service.storage.deleted_datasets import DeletedDatasets
from jobs_service.storage.dependency_store import DependencyStore
from jobs_service.storage.ending_store import EndingStore
from jobs_service.storage.engine import (
    Limits,
    commit,
    leads_to_a_pooler,
    new_engine,
    normalized_url,
)
from jobs_service.storage.event_readers import EventReaders
from jobs_service.storage.event_store import EventStore
from jobs_service.storage.job_choice import JobChoice
from jobs_service.storage.job_counts import JobCounts
from jobs_service.storage.job_list import JobList
from jobs_service.storage.job_queue import JobQueue
from jobs_service.storage.job_store import JobStore
from jobs_service.storage.lease_store import LeaseStore
from jobs_service.storage.observed import observe_pool, observed
from jobs_service.storage.places import Places
from jobs_service.storage.queue_duties import QueueDuties
from jobs_service.storage.queue_figures import QueueFigures
from jobs_service.storage.retention import Retention
from jobs_service.storage.retry_store import RetryStore
from jobs_service.storage.schema import SchemaReport, report
from jobs_service.storage.unheard_ends import UnheardEnds
from jobs_service.storage.watchdog import Watchdog
from jobs_service.telemetry.metrics import DatabaseMetrics, Metrics

_GRACE_SECONDS = 2.0
_READ_SETTINGS = select(
    func.set_config("statement_timeout", bindparam("milliseconds"), True),
    # A plan made for any caller is a bad one for most: few data sets or thousands, owner or reader.
    func.set_config("plan_cache_mode", "force_custom_plan", True),
    # A guess of many rows is no reason to compile for 300 ms what then reads a hundred.
    func.set_config("jit", "off", True),
)


class Transaction:
    """The stores, in one transaction. Used once, within the with block that made it.

    news: what is to be told to others after the block.
    """

    def __init__(self, connection: Connection) -> None:
        self.news = News()
        self.access = AccessStore(connection)
        self.access_list = AccessList(connection)
        self.access_events = AccessEvents(connection)
        self.deleted_datasets = DeletedDatasets(connection)
        self.jobs = JobStore(connection)
        self.job_list = JobList(connection)
        self.queue = JobQueue(connection)
        self.queue_duties = QueueDuties(connection)
        self.places = Places(connection)
        self.leases = LeaseStore(connection)
        self.endings = EndingStore(connection)
        self.retries = RetryStore(connection)
        self.job_choice = JobChoice(connection)
        self.events = EventStore(connection)
        self.dependencies = DependencyStore(connection)
        self.unheard_ends = UnheardEnds(connection)
        self.event_readers = EventReaders(connection)
        self.job_counts = JobCounts(connection)
        self.queue_figures = QueueFigures(connection)
        self.retention = Retention(connection)


class Database:
    """A pool of connections to one Postgres.

    url: as normalized_url takes it. statement_seconds, lock_seconds: the limits of every statement
    that is not within a snapshot. pooled: the URL leads to a pooler that gives each transaction a
    connection of the server, so nothing may be left for the next one to find.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int,
        statement_seconds: float,
        lock_seconds: float,
        pooled: bool = False,
        metrics: DatabaseMetrics | None = None,
    ) -> None:
        self._batch_seconds = statement_seconds
        self._pooled = pooled
        self._limits = Limits(statement_seconds, lock_seconds)
        self._metrics = metrics or Metrics().database
        self._watchdog = Watchdog(self._metrics.watchdog_shuts.inc)
        self._engine = new_engine(
            normalized_url(url), pool_size=pool_size, limits=self._limits, pooled=pooled
        )
        observe_pool(self._metrics, self._engine)
        self._autocommit, self._read_only = self._engine, self._engine
        if not pooled:
            self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")
            self._read_only = self._engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )

    @property
    def engine(self) -> Engine:
        """The engine itself, for migrations. They need sessions: it must not be pooled."""
        return self._engine

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A read-committed transaction, committed at the end of the block.

        Raises TransactionRolledBack where surely nothing was written and a rerun may succeed,
        DatabaseUnavailable where the database is away, COMMIT got no answer, or what was committed may
        not last, RowLocked.
        """
        with self._connection(self._engine, self._batch_seconds) as connection:
            with driver_errors.in_statement():
                self._begin(connection, self._limits.begin)
                yield Transaction(connection)
            with driver_errors.in_commit():
                warning = commit(connection)
            if warning is not None:
                raise driver_errors.of_warned_commit(warning)

    @contextmanager
    def one_statement(self) -> Iterator[Transaction]:
        """For a read of one statement, which is its own transaction without BEGIN and COMMIT.

        Through a pooler it has them all the same, two round trips more: a statement without limits and
        with whatever another application has set would cost more.
        """
        with (
            self._connection(self._autocommit, self._batch_seconds) as connection,
            driver_errors.in_statement(),
        ):
            self._begin(connection, self._limits.begin)
            yield Transaction(connection)

    @contextmanager
    def snapshot(self, *, seconds: float) -> Iterator[Transaction]:
        """Reads that all see one moment; each statement may take the seconds given.

        Raises DeadlineExceeded when one takes longer, or all of them a little longer.
        """
        milliseconds = max(1, int(seconds * 1000))
        with (
            self._connection(self._read_only, seconds, too_long=DeadlineExceeded) as connection,
            driver_errors.in_timed_read(),
        ):
            self._begin(connection, self._limits.begin_snapshot(milliseconds))
            if not self._pooled:
                connection.execute(_READ_SETTINGS, {"milliseconds": str(milliseconds)})
            yield Transaction(connection)

    def schema_report(self, *, release: str) -> SchemaReport:
        """Ask the database which schema it has. Raises DatabaseUnavailable, UnusableDatabaseUrl."""
        with (
            self._connection(self._autocommit, self._batch_seconds) as connection,
            driver_errors.in_statement(),
        ):
            self._begin(connection, self._limits.begin)
            if not self._pooled and leads_to_a_pooler(connection):
                raise driver_errors.unannounced_pooler()
            return report(connection, release=release)

    def _begin(self, connection: Connection, statement: str) -> None:
        """Through a pooler the driver does not begin, we do, and say what holds in this transaction."""
        if self._pooled:
            with driver_errors.in_begin():
                connection.exec_driver_sql(statement)

    def abort(self) -> None:
        """Cut the connections that are in use; whoever uses one gets DatabaseUnavailable."""
        self._watchdog.shut_all()

    def close(self) -> None:
        """Close every idle connection; one in use closes when it comes back."""
        self._engine.dispose()

    @contextmanager
    def _connection(
        self, engine: Engine, seconds: float, too_long: type[JobsError] = DatabaseUnavailable
    ) -> Iterator[Connection]:
        with observed(self._metrics), self._watched(engine, seconds, too_long) as connection:
            yield connection

    @contextmanager
    def _watched(self, engine: Engine, seconds: float, too_long: type[JobsError]) -> Iterator[Connection]:
        began = time.monotonic()
        with self._metrics.wait_seconds.time():
            connection = _connect(engine)
        try:
            # The database's own limit comes first, while there is a database.
            with self._watchdog.watching(connection, seconds + _GRACE_SECONDS) as watch:
                try:
                    yield connection
                except TransactionRolledBack:
                    if watch.shut or time.monotonic() - began > seconds:
                        # Another try would only wait as long again.
                        raise too_long from None
                    raise
                finally:
                    # What is open still (a snapshot, a failure) ends while it is watched.
                    with suppress(DBAPIError):
                        connection.rollback()
        finally:
            _close(connection)


def _connect(engine: Engine) -> Connection:
    try:
        return engine.connect()
    except (PoolTimeout, InvalidRequestError):
        # All are in use, or each that was tried is one to a read-only server.
        raise DatabaseUnavailable from None
    except DBAPIError as error:
        raise driver_errors.of_connect(error) from error.orig


def _close(connection: Connection) -> None:
    """Give the connection back. What its block did has been decided by then: no error changes that."""
    try:
        connection.close()
    except DBAPIError:
        # The rollback found the connection lost. SQLAlchemy has dropped it, or has to be told to.
        if not connection.closed:
            connection.invalidate()
            connection.close()
