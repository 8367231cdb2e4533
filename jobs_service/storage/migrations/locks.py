"""How a migration changes a table that is in use."""

import time

from alembic import op
from sqlalchemy.exc import OperationalError

_TRIES = 100
_PAUSE_SECONDS = 0.5
_LOCK_TIMEOUT = "55P03"


def change_briefly(statement: str) -> None:
    """Run a change that needs a table for itself for a moment, in an autocommit block.

    While it waits for that moment everybody waits who comes after, so it asks for a short time, again and
    again, rather than once for long. One table at a time: with two, writers and it could wait for each other.
    """
    for attempt in range(_TRIES):
        try:
            _run_within("200ms", statement)
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != _LOCK_TIMEOUT or attempt == _TRIES - 1:
                raise
            time.sleep(_PAUSE_SECONDS)
        else:
            return


def build_patiently(statement: str) -> None:
    """Run a change that keeps nobody waiting, such as CREATE INDEX CONCURRENTLY, in an autocommit block.

    It waits itself for every transaction that is open.
    """
    _run_within("5min", statement)


def index_is_ready(name: str, definition: str) -> bool:
    """Whether there is this index, whole; the definition word for word as Postgres shows it, from "(" on."""
    found = (
        "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indexrelid = to_regclass(%s) AND indisvalid"
    )
    shown = op.get_bind().exec_driver_sql(found, (name,)).scalar()
    return shown is not None and shown.endswith(f" USING btree {definition}")


def _run_within(lock_timeout: str, statement: str) -> None:
    """Run a statement; the next one, of this migration or another, waits for locks as long as before."""
    before = op.get_bind().exec_driver_sql("SELECT current_setting('lock_timeout')").scalar_one()
    op.execute(f"SET lock_timeout = '{lock_timeout}'")
    try:
        op.execute(statement)
    except OperationalError as error:
        if not error.connection_invalidated:
            op.execute(f"SET lock_timeout = '{before}'")
        raise
    op.execute(f"SET lock_timeout = '{before}'")
