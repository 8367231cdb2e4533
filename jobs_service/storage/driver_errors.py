"""What a driver's error means to the layers above."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from psycopg import OperationalError, ProgrammingError
from sqlalchemy.exc import DBAPIError

from jobs_service.model.errors import (
    DatabaseUnavailable,
    DeadlineExceeded,
    RowLocked,
    TransactionRolledBack,
)

_RERUN = frozenset({"40001", "40P01"})  # serialization failure, deadlock
_LOCK_TIMEOUT = "55P03"
_INSUFFICIENT_PRIVILEGE = "42501"
_QUERY_CANCELED = "57014"
_PROTOCOL_VIOLATION = "08P01"
_REFUSED_PARAMETER = "unsupported startup parameter"
# The server answers, but not to us, not now: going down, coming up, a standby, out of connections,
# disk or memory.
_AWAY = frozenset({"57P01", "57P02", "57P03", "57P05", "53100", "53200", "53300", "25006"})


_log = logging.getLogger(__name__)


class UnusableDatabaseUrl(ValueError):
    """The driver does not understand an option of the URL, or it leads to a pooler unannounced."""


class UnexpectedDatabaseError(Exception):
    """A fault of ours that the database found. Holds no value of any row: those are not for logs."""


class MigrationHeldUp(Exception):
    """Other transactions held locks that a migration needs, for too long or in a deadlock."""


class PrivilegeMissing(UnexpectedDatabaseError):
    """The database's user may not do this; the README says what it needs."""


def of_connect(error: DBAPIError) -> Exception:
    """No connection, so nothing was written; trying again at once would not help."""
    if isinstance(error.orig, ProgrammingError):
        return UnusableDatabaseUrl(f"the database URL can't be used: {error.orig}")
    if _REFUSED_PARAMETER in str(error.orig):
        return unannounced_pooler()
    _log.warning("no connection to the database", extra={"fields": {"error": str(error.orig)}})
    return DatabaseUnavailable()


def unannounced_pooler() -> UnusableDatabaseUrl:
    """A pooler answers where each connection should be one of the server's."""
    return UnusableDatabaseUrl(
        "a pooler (PgBouncer?) answers in the database's place: JOBS_DATABASE_URL may lead to one where"
        " JOBS_DIRECT_DATABASE_URL is set too, and leads to the server itself"
    )


def of_warned_commit(warning: str) -> DatabaseUnavailable:
    """The server committed, but perhaps not for good: to say so to a caller would be a promise."""
    _log.warning("the database warned at COMMIT", extra={"fields": {"warning": warning}})
    return DatabaseUnavailable()


def _of_statement(error: DBAPIError) -> Exception:
    state = getattr(error.orig, "sqlstate", None)
    if state == _PROTOCOL_VIOLATION:
        # A pooler's word for all that it can't do: no free connection in time, no server. Who comes
        # back at once waits as long again.
        return DatabaseUnavailable()
    if state in _RERUN or error.connection_invalidated:
        return TransactionRolledBack()
    if state == _LOCK_TIMEOUT:
        return RowLocked()
    if state == _QUERY_CANCELED or _is_away(error, state):
        return DatabaseUnavailable()
    return _unexpected(error)


def _of_migration(error: DBAPIError) -> Exception:
    if getattr(error.orig, "sqlstate", None) in {*_RERUN, _LOCK_TIMEOUT}:
        return MigrationHeldUp(
            "other transactions held what the migration needs, and it was rolled back as far as it was not"
            f" committed ({_primary(error)}): run it again"
        )
    return _of_statement(error)


def _of_begin(error: DBAPIError) -> Exception:
    if getattr(error.orig, "sqlstate", None) == _QUERY_CANCELED:
        # The limit was that of whoever had the server's connection before; ours was not set yet.
        return TransactionRolledBack()
    return _of_statement(error)


def _of_commit(error: DBAPIError) -> Exception:
    state = getattr(error.orig, "sqlstate", None)
    if state in _RERUN:
        return TransactionRolledBack()
    # Whether COMMIT arrived is not known: never rerun, request_id tells.
    if error.connection_invalidated or _is_away(error, state):
        return DatabaseUnavailable()
    return _unexpected(error)


def _unexpected(error: DBAPIError) -> Exception:
    primary = _primary(error)
    if getattr(error.orig, "sqlstate", None) == _INSUFFICIENT_PRIVILEGE:
        return PrivilegeMissing(f"the database's user lacks a privilege: {primary}")
    return UnexpectedDatabaseError(f"{type(error.orig).__name__}: {primary}")


def _primary(error: DBAPIError) -> str | None:
    # The driver's own text has a DETAIL with the row in it.
    return getattr(getattr(error.orig, "diag", None), "message_primary", None)


def _of_timed_read(error: DBAPIError) -> Exception:
    if getattr(error.orig, "sqlstate", None) == _QUERY_CANCELED:
        return DeadlineExceeded()
    return _of_statement(error)


def _is_away(error: DBAPIError, state: str | None) -> bool:
    if state is None:
        return isinstance(error.orig, OperationalError)
    return state in _AWAY or state.startswith("08")


@contextmanager
def _translated(translate: Callable[[DBAPIError], Exception]) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        meaning = translate(error)
        if isinstance(meaning, DatabaseUnavailable):
            state = getattr(error.orig, "sqlstate", None)
            fields = {"sqlstate": state, "error": str(error.orig), "meaning": type(meaning).__name__}
            _log.warning("the database failed", extra={"fields": fields})
        # Not "from error": what is logged of the cause would hold the values.
        raise meaning from None


def in_begin() -> AbstractContextManager[None]:
    """Errors of a pooler's BEGIN, under limits that are not ours."""
    return _translated(_of_begin)


def in_statement() -> AbstractContextManager[None]:
    """Errors before COMMIT: a lost connection has rolled back."""
    return _translated(_of_statement)


def in_migration() -> AbstractContextManager[None]:
    """Errors of a migration, which an operator runs again and no caller waits for."""
    return _translated(_of_migration)


def in_commit() -> AbstractContextManager[None]:
    """Errors of COMMIT itself: a lost connection leaves open what happened."""
    return _translated(_of_commit)


def in_timed_read() -> AbstractContextManager[None]:
    """Errors of a read with the caller's time as its limit."""
    return _translated(_of_timed_read)
