"""The pool: how a connection is made, what it is told, and when it is dropped."""

from typing import Any, cast

import orjson
import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import InvalidatePoolError

_CONNECT_ARGUMENTS = {
    # A dead network is noticed within seconds; without these libpq waits for the kernel's hours.
    "connect_timeout": "3",
    "keepalives": "1",
    "keepalives_idle": "3",
    "keepalives_interval": "1",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",
    "client_encoding": "utf8",
    "application_name": "jobs-service",
}
_READ_WRITE = "read-write"
_READ_ONLY = "25006"
_WARNINGS = "warnings"
# What whoever had the server's connection before may have left behind. Our own limits are for this
# transaction alone: the next one belongs to another client of the pooler. default_transaction_read_only
# counts from the next transaction on, so it needs one before ours; what the server's own configuration
# says of it holds, it may be what fences off an old primary.
_POOLED_BEGIN = (
    "BEGIN; RESET default_transaction_read_only; COMMIT;"
    " BEGIN ISOLATION LEVEL {isolation};"
    " SET LOCAL statement_timeout = {milliseconds};"
    " SET LOCAL lock_timeout = {lock_milliseconds};"
    " SET LOCAL idle_in_transaction_session_timeout = {idle_milliseconds};"
    " SET LOCAL timezone = 'UTC';"
    " SET LOCAL plan_cache_mode = {plan_cache_mode};"
    " SET LOCAL jit = {jit};"
    " SET LOCAL search_path TO DEFAULT;"
    " SET LOCAL synchronous_commit TO DEFAULT;"
    " SET LOCAL role TO DEFAULT"
)


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


class Limits:
    """How long statements, locks and forgotten transactions may take, as Postgres is told.

    begin: for a pooler's connection, begins a read-committed transaction in one round trip.
    """

    def __init__(self, statement_seconds: float, lock_seconds: float) -> None:
        self.milliseconds = int(statement_seconds * 1000)
        self.lock_milliseconds = int(lock_seconds * 1000)
        # A transaction that we forgot would hold its locks and every dead row since.
        self.idle_milliseconds = int(statement_seconds * 2000)
        self.begin = self._begin("READ COMMITTED", self.milliseconds, "DEFAULT", "DEFAULT")

    def as_options(self) -> str:
        """For a connection that is ours alone, said once for all its transactions."""
        settings = {
            "statement_timeout": self.milliseconds,
            "lock_timeout": self.lock_milliseconds,
            "idle_in_transaction_session_timeout": self.idle_milliseconds,
            "timezone": "UTC",
            # The other end of a dead network: Postgres would keep our sessions, and their locks, for hours.
            "tcp_keepalives_idle": 3,
            "tcp_keepalives_interval": 1,
            "tcp_keepalives_count": 3,
            "tcp_user_timeout": 5000,
        }
        return " ".join(f"-c {name}={value}" for name, value in settings.items())

    def begin_snapshot(self, milliseconds: int) -> str:
        """The same for reads that see one moment, each at most this long, with the plans of lists."""
        return self._begin("REPEATABLE READ READ ONLY", milliseconds, "force_custom_plan", "off")

    def _begin(self, isolation: str, milliseconds: int, plan_cache_mode: str, jit: str) -> str:
        return _POOLED_BEGIN.format(
            isolation=isolation,
            milliseconds=milliseconds,
            lock_milliseconds=self.lock_milliseconds,
            idle_milliseconds=self.idle_milliseconds,
            plan_cache_mode=plan_cache_mode,
            jit=jit,
        )


def new_engine(url: URL, *, pool_size: int, limits: Limits, pooled: bool) -> Engine:
    """Return an engine whose connections keep to the limits.

    pooled: the URL leads to a pooler, where a connection of the server is ours for one transaction at a
    time. The driver then begins none by itself, and the limits have to be told in each (Limits).
    Raises ValueError for a URL that no pooler takes.
    """
    if pooled and "options" in url.query:
        raise ValueError("a URL with options, which PgBouncer refuses: use ALTER ROLE ... SET for them")
    own: dict[str, Any] = {"prepare_threshold": None} if pooled else {"options": limits.as_options()}
    if not pooled:
        # Of several hosts the primary; libpq finds out without asking the server anything more.
        own["target_session_attrs"] = _READ_WRITE
    engine = create_engine(
        url,
        connect_args=_not_given({**_CONNECT_ARGUMENTS, **own}, url),
        pool_size=pool_size,
        max_overflow=0,
        # Each thread has its connection: it would take a leak for one to wait here.
        pool_timeout=2,
        hide_parameters=True,
        # It would be looked up at the first connection; no column of ours is one.
        use_native_hstore=False,
        json_serializer=lambda value: orjson.dumps(value).decode(),
        json_deserializer=orjson.loads,
        **({"isolation_level": "AUTOCOMMIT"} if pooled else {}),
    )
    event.listen(engine, "connect", _collect_warnings)
    event.listen(engine, "handle_error", _drop_connections_to_a_read_only_server)
    if not pooled and url.query.get("target_session_attrs", _READ_WRITE) == _READ_WRITE:
        event.listen(engine, "checkout", _refuse_a_read_only_server)
    return engine


def _not_given(arguments: dict[str, Any], url: URL) -> dict[str, Any]:
    """What the URL says wins, but options add up."""
    given = url.query.get("options")
    if given and "options" in arguments:
        arguments["options"] = f"{arguments['options']} {given}"
    return {key: value for key, value in arguments.items() if key == "options" or key not in url.query}


def commit(connection: Connection) -> str | None:
    """Commit. Returns what the server warned of: what it committed may not last.

    It warns where the wait for a synchronous standby was cancelled: if the primary dies now, what was
    written is gone.
    """
    warnings: list[str] = connection.info[_WARNINGS]
    warnings.clear()
    connection.commit()
    return warnings[0] if warnings else None


def leads_to_a_pooler(connection: Connection) -> bool:
    """Whether somebody answers in the server's place: its processes then have other ids than we were told."""
    told = cast(psycopg.Connection, connection.connection.driver_connection).info.backend_pid
    return bool(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one() != told)


def _collect_warnings(driver: psycopg.Connection, record: Any) -> None:
    warnings: list[str] = []
    record.info[_WARNINGS] = warnings

    def collect(notice: psycopg.errors.Diagnostic) -> None:
        # The other severity is in the server's language.
        if notice.severity_nonlocalized == "WARNING":
            # One is kept: they are asked for after a COMMIT alone.
            warnings[:] = [f"{notice.sqlstate}: {notice.message_primary}"]

    driver.add_notice_handler(collect)


def _drop_connections_to_a_read_only_server(context: ExceptionContext) -> None:
    """A primary that has become a standby, or is fenced off: no connection of the pool goes there again."""
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
        context.is_disconnect = True


def _refuse_a_read_only_server(driver: psycopg.Connection, _record: object, _proxy: object) -> None:
    """The same where there are only reads, which would go on there and get older and older.

    The server tells these two by itself, with the answer to any statement.
    """
    status = driver.info.parameter_status
    if status("in_hot_standby") == "on" or status("default_transaction_read_only") == "on":
        raise InvalidatePoolError
