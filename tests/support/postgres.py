"""Real Postgres servers for tests, and a database of its own for each test."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import URL, make_url

from jobs_service.storage import schema
from jobs_service.storage.database import Database
from jobs_service.storage.embedded import DataFolder, EmbeddedPostgres

POSTGRES_15 = Path("/usr/lib/postgresql/15/bin")


class PostgresServer:
    """A running server whose databases are clones of a migrated template (about 40 ms each)."""

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self.postgres = postgres
        self._numbers = itertools.count(1)
        self._url = make_url(postgres.url())
        self._run("CREATE DATABASE template_jobs")
        database = open_database(self._named("template_jobs"))
        schema.migrate(database.engine)
        database.close()

    def new_database(self) -> str:
        """Create an empty, migrated database and return its URL."""
        name = f"test_{next(self._numbers)}"
        self._run(f"CREATE DATABASE {name} TEMPLATE template_jobs")
        return self._named(name)

    def blank_database(self) -> str:
        """Create a database without any table and return its URL."""
        name = f"test_{next(self._numbers)}"
        self._run(f"CREATE DATABASE {name}")
        return self._named(name)

    def _named(self, name: str) -> str:
        return self._url.set(database=name).render_as_string(hide_password=False)

    def _run(self, statement: str) -> None:
        with connect(self._url) as connection:
            connection.execute(statement.encode())


@contextmanager
def running_postgres(folder: Path, pg_bin: Path | None = None) -> Iterator[PostgresServer]:
    """Run a server in this folder; pg_bin: the programs' folder, None for the wheel's Postgres 18."""
    data = DataFolder(folder)
    data.prepare()
    data.lock()
    postgres = EmbeddedPostgres(data, pg_bin=pg_bin)
    postgres.start()
    try:
        yield PostgresServer(postgres)
    finally:
        postgres.stop()
        data.unlock()


def open_database(
    url: str, *, pool_size: int = 20, statement_seconds: float = 10, pooled: bool = False
) -> Database:
    """Open a database as the service does."""
    return Database(
        url, pool_size=pool_size, statement_seconds=statement_seconds, lock_seconds=1, pooled=pooled
    )


def connect(url: str | URL) -> psycopg.Connection:
    """Connect directly, in autocommit, for what no RPC can do or show."""
    parts = make_url(url)
    return psycopg.connect(
        host=parts.query.get("host") or parts.host,  # type: ignore[arg-type] # one host, so a str
        port=parts.port,
        user=parts.username,
        password=parts.password,
        dbname=parts.database,
        autocommit=True,
    )
