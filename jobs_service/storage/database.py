"""Connections and transactions."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import orjson
from sqlalchemy import URL, Connection, Engine, bindparam, create_engine, func, make_url, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from jobs_service.model.errors import DatabaseUnavailable, DeadlineExceeded, JobsError, TransactionRolledBack
from jobs_service.storage import driver_errors
from jobs_service.storage.access_store import AccessStore
from jobs_service.storage.event_store import EventStore
from jobs_service.storage.job_list import JobList
from jobs_service.storage.job_store import JobStore
from jobs_service.storage.schema import SchemaReport, report
from jobs_service.storage.watchdog import Watchdog

_CONNECT_ARGUMENTS = {
    # A dead network is noticed within seconds; without these libpq waits for the kernel's hours.
    "connect_timeout": "3",
    "keepalives": "1",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "8000",
    "client_encoding": "utf8",
    "application_name": "jobs-service",
}
_GRACE_SECONDS = 2.0
_READ_SETTINGS = select(
    func.set_config("statement_timeout", bindparam("milliseconds"), True),
    # A plan made for any caller is a bad one for most: few data sets or thousands, owner or reader.
    func.set_config("plan_cache_mode", "force_custom_plan", True),
)


class Transaction:
    """The stores, in one transaction. Used once, within the with block that made it."""

    def __init__(self, connection: Connection) -> None:
        self.access = AccessStore(connection)
        self.jobs = JobStore(connection)
        self.job_list = JobList(connection)
        self.events = EventStore(connection)


class Database:
    """A pool of connections to one Postgres.

    url: as normalized_url takes it. statement_seconds, lock_seconds: the limits of every statement
    that is not within a snapshot.
    """

    def __init__(self, url: str, *, pool_size: int, statement_seconds: float, lock_seconds: float) -> None:
        self._batch_seconds = statement_seconds
        self._watchdog = Watchdog()
        self._engine = _engine(normalized_url(url), pool_size, statement_seconds, lock_seconds)
        self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._read_only = self._engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )

    @property
    def engine(self) -> Engine:
        """The engine itself, for migrations."""
        return self._engine

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A read-committed transaction, committed at the end of the block.

        Raises TransactionRolledBack where surely nothing was written and a rerun may succeed,
        DatabaseUnavailable where the database is away or COMMIT got no answer, RowLocked.
        """
        with self._connection(self._engine, self._batch_seconds) as connection:
            with driver_errors.in_statement():
                yield Transaction(connection)
            with driver_errors.in_commit():
                connection.commit()

    @contextmanager
    def one_statement(self) -> Iterator[Transaction]:
        """For a read of one statement, which is its own transaction without BEGIN and COMMIT."""
        with (
            self._connection(self._autocommit, self._batch_seconds) as connection,
            driver_errors.in_statement(),
        ):
            yield Transaction(connection)

    @contextmanager
    def snapshot(self, *, seconds: float) -> Iterator[Transaction]:
        """Reads that all see one moment; each statement may take the seconds given.

        Raises DeadlineExceeded when one takes longer, or all of them a little longer.
        """
        with (
            self._connection(self._read_only, seconds, too_long=DeadlineExceeded) as connection,
            driver_errors.in_timed_read(),
        ):
            connection.execute(_READ_SETTINGS, {"milliseconds": str(max(1, int(seconds * 1000)))})
            yield Transaction(connection)

    def schema_report(self, *, release: str) -> SchemaReport:
        """Ask the database which schema it has. Raises DatabaseUnavailable."""
        with (
            self._connection(self._autocommit, self._batch_seconds) as connection,
            driver_errors.in_statement(),
        ):
            return report(connection, release=release)

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
        try:
            connection = engine.connect()
        except PoolTimeout:
            raise DatabaseUnavailable from None
        except DBAPIError as error:
            raise driver_errors.of_connect(error) from error.orig
        try:
            # The database's own limit comes first, while there is a database.
            with self._watchdog.watching(connection, seconds + _GRACE_SECONDS) as watch:
                try:
                    yield connection
                except TransactionRolledBack:
                    if watch.shut:
                        # Another try would only wait as long again.
                        raise too_long from None
                    raise
                finally:
                    # What is open still (a snapshot, a failure) ends while it is watched.
                    with suppress(DBAPIError):
                        connection.rollback()
        finally:
            _close(connection)


def _close(connection: Connection) -> None:
    """Give the connection back. What its block did has been decided by then: no error changes that."""
    try:
        connection.close()
    except DBAPIError:
        # The rollback found the connection lost. SQLAlchemy has dropped it, or has to be told to.
        if not connection.closed:
            connection.invalidate()
            connection.close()


def normalized_url(url: str) -> URL:
    """Return the URL with our driver. Raises ValueError when it is not one of a Postgres."""
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except Exception as error:
        raise ValueError("not a database URL") from error
    if backend != "postgresql":
        raise ValueError("not a postgresql:// URL")
    return parsed.set(drivername="postgresql+psycopg")


def _engine(url: URL, pool_size: int, statement_seconds: float, lock_seconds: float) -> Engine:
    settings = {
        "statement_timeout": int(statement_seconds * 1000),
        "lock_timeout": int(lock_seconds * 1000),
        # A transaction that we forgot would hold its locks and every dead row since.
        "idle_in_transaction_session_timeout": int(statement_seconds * 2000),
        "timezone": "UTC",
    }
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    arguments: dict[str, Any] = {**_CONNECT_ARGUMENTS, "options": options}
    # What the URL says wins, but options add up.
    given = {key: value for key, value in url.query.items() if key in arguments}
    if "options" in given:
        arguments["options"] = f"{options} {given['options']}"
    arguments = {key: value for key, value in arguments.items() if key not in given or key == "options"}
    return create_engine(
        url,
        connect_args=arguments,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=5,
        hide_parameters=True,
        json_serializer=lambda value: orjson.dumps(value).decode(),
        json_deserializer=orjson.loads,
    )
