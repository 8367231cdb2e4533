"""The database as metrics and traces see it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from sqlalchemy import Engine, QueuePool

from jobs_service.model.errors import (
    DatabaseUnavailable,
    DeadlineExceeded,
    RowLocked,
    TransactionRolledBack,
)
from jobs_service.storage.driver_errors import UnexpectedDatabaseError
from jobs_service.telemetry import traces
from jobs_service.telemetry.metrics import DatabaseMetrics

_MEANINGS: dict[type[Exception], str] = {
    DatabaseUnavailable: "unavailable",
    TransactionRolledBack: "rolled_back",
    RowLocked: "row_locked",
    DeadlineExceeded: "too_slow",
    UnexpectedDatabaseError: "unexpected",
}


def observe_pool(metrics: DatabaseMetrics, engine: Engine) -> None:
    """Show the engine's pool."""
    pool = cast(QueuePool, engine.pool)
    metrics.pool_is(used=pool.checkedout, idle=pool.checkedin, size=pool.size)


@contextmanager
def observed(metrics: DatabaseMetrics) -> Iterator[None]:
    """Count the block if the database fails in it, and make it a span where a trace is recorded."""
    with traces.within("postgres"):
        try:
            yield
        except tuple(_MEANINGS) as error:
            metrics.failed(_meaning(error))
            raise


def _meaning(error: Exception) -> str:
    """The word for the nearest class that has one."""
    return next(_MEANINGS[kind] for kind in type(error).__mro__ if kind in _MEANINGS)
