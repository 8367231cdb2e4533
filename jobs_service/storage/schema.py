"""The state of the schema: bring it up to date, and say whether this release can run on it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, func, inspect, select, text

from jobs_service.storage import driver_errors
from jobs_service.storage.tables import schema_info

_MIGRATIONS = Path(__file__).parent / "migrations"
# Any 64-bit number that no other program uses for an advisory lock on this database.
_LOCK_KEY = 0x6A6F62735F763031
_POLL_SECONDS = 0.1
_SESSION = {
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    # Who holds the advisory lock is idle while the other connection builds.
    "idle_session_timeout": "0",
    "lock_timeout": "10s",
}
_SINCE_17 = {"transaction_timeout": "0"}


class SchemaState(Enum):
    """Whether this release can serve on the schema that it found."""

    READY = "ready"
    BEHIND = "behind"
    TOO_NEW = "too new"


class MigrationLockTimeout(Exception):
    """Another process has been migrating for longer than we are willing to wait."""


@dataclass(frozen=True, slots=True)
class SchemaReport:
    """What was found: the revision in the database (None: empty), ours, and the verdict."""

    state: SchemaState
    found: str | None
    known: str
    oldest_release: str | None


def migrate(engine: Engine, *, wait_seconds: float = 600.0) -> None:
    """Bring the schema to this release's head; safe from any number of replicas at once.

    Needs a direct connection (an advisory lock belongs to a session). Raises MigrationLockTimeout,
    DatabaseUnavailable, and MigrationHeldUp where others hold a table for too long.
    """
    with _session(engine.execution_options(isolation_level="AUTOCOMMIT")) as lock:
        _wait_for_lock(lock, wait_seconds)
        try:
            with _session(engine) as connection:
                if report(connection, release="0.0.0").state is SchemaState.BEHIND:
                    # Alembic commits each migration by itself, and only where it began.
                    connection.rollback()
                    command.upgrade(_alembic(connection), "head")
        finally:
            lock.execute(select(func.pg_advisory_unlock(_LOCK_KEY)))


@contextmanager
def _session(engine: Engine) -> Iterator[Connection]:
    """A connection whose statements may take as long as they take; a lock they wait for, 10 s.

    Whoever waits for a table's lock keeps everybody waiting who comes after.
    """
    with engine.connect() as connection, driver_errors.in_migration():
        version = connection.dialect.server_version_info or ()
        for name, value in {**_SESSION, **(_SINCE_17 if version >= (17,) else {})}.items():
            connection.execute(text(f"SET {name} = '{value}'"))
        connection.commit()
        yield connection
        connection.rollback()
        connection.execute(text("RESET ALL"))
        connection.commit()


def _wait_for_lock(connection: Connection, seconds: float) -> None:
    # Polled: a session that blocks in pg_advisory_lock holds a snapshot, which CREATE INDEX
    # CONCURRENTLY in the session that has the lock would wait for, for ever.
    deadline = time.monotonic() + seconds
    while not connection.execute(select(func.pg_try_advisory_lock(_LOCK_KEY))).scalar_one():
        if time.monotonic() > deadline:
            raise MigrationLockTimeout(f"another process has been migrating for {seconds:.0f} s")
        time.sleep(_POLL_SECONDS)


def report(connection: Connection, *, release: str) -> SchemaReport:
    """Compare the schema in the database with what this release knows."""
    known, head = _revisions()
    if not inspect(connection).has_table("schema_info"):
        return SchemaReport(SchemaState.BEHIND, None, head, None)
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    oldest = connection.execute(select(schema_info.c.oldest_release)).scalar_one()
    return SchemaReport(_verdict(found, head, known, oldest, release), found, head, oldest)


@cache
def _revisions() -> tuple[frozenset[str], str]:
    """The revisions that this release knows, and the last of them."""
    script = ScriptDirectory.from_config(_alembic())
    known = frozenset(revision.revision for revision in script.walk_revisions())
    return known, script.get_current_head() or ""


def _verdict(found: str | None, head: str, known: frozenset[str], oldest: str, release: str) -> SchemaState:
    if found == head:
        return SchemaState.READY
    if found is None or found in known:
        return SchemaState.BEHIND
    # A revision that this release has never heard of: made by a newer one, which said who may stay.
    return SchemaState.READY if _numbers(release) >= _numbers(oldest) else SchemaState.TOO_NEW


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("."))


def _alembic(connection: Connection | None = None) -> Config:
    config = Config()
    # The ini format reads % as its own.
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
