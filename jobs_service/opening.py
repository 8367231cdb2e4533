"""Opens the storage that the settings name: a database of theirs, or the embedded Postgres, kept alive."""

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from jobs_service import __version__
from jobs_service.config import Config, ConfigError
from jobs_service.core.access_service import AccessService
from jobs_service.storage import schema
from jobs_service.storage.announcer import Announcer
from jobs_service.storage.database import Database
from jobs_service.storage.embedded import (
    DataFolder,
    DataFolderInUse,
    EmbeddedPostgres,
    EmbeddedPostgresError,
)
from jobs_service.storage.schema import SchemaReport, SchemaState
from jobs_service.telemetry.metrics import Metrics
from jobs_service.transport.operations import BATCHERS
from jobs_service.transport.worker_operations import WORK_BATCHERS

_log = logging.getLogger(__name__)


class SchemaUnusable(Exception):
    """The schema is behind this release, or too new for it."""


@dataclass(frozen=True, slots=True)
class Storage:
    """An open database. postgres: the embedded server, where this process runs it. announcer: not started."""

    database: Database
    postgres: EmbeddedPostgres | None
    schema: SchemaReport
    announcer: Announcer


@contextmanager
def open_storage(
    config: Config, *, migrate: bool, exclusive: bool, metrics: Metrics | None = None
) -> Iterator[Storage]:
    """Open the configured database, with a schema that this release can run on.

    The embedded Postgres is started for as long as the block lasts, and always brought up to date.
    Where another process has it running: exclusive raises DataFolderInUse, else that one is used.
    Raises EmbeddedPostgresError, DatabaseUnavailable, SchemaUnusable, MigrationLockTimeout,
    MigrationHeldUp.
    """
    with _postgres(config, exclusive) as (url, postgres):
        # Whoever has a direct URL has the other one for a pooler.
        pooled = config.direct_database_url not in {None, url}
        database = _database(config, url, "JOBS_DATABASE_URL", pooled=pooled, metrics=metrics)
        try:
            if migrate or postgres is not None:
                _bring_up_to_date(config, url)
            found = database.schema_report(release=__version__)
            _require_schema(found)
            if postgres is not None and AccessService(database).fill_if_empty():
                _log.info("filled the empty database with a demo")
            yield Storage(database, postgres, found, _announcer(config, url))
        finally:
            database.close()


@contextmanager
def _postgres(config: Config, exclusive: bool) -> Iterator[tuple[str, EmbeddedPostgres | None]]:
    if config.database_url is not None:
        yield config.database_url, None
        return
    folder = DataFolder(config.data_dir.absolute())
    postgres = EmbeddedPostgres(folder, pg_bin=config.pg_bin)
    folder.prepare()
    try:
        folder.lock()
    except DataFolderInUse:
        if exclusive:
            raise
        yield postgres.url(), None
        return
    try:
        postgres.start()
        yield postgres.url(), postgres
    finally:
        postgres.stop()
        folder.unlock()


def _database(
    config: Config, url: str, name: str, *, pooled: bool = False, metrics: Metrics | None = None
) -> Database:
    try:
        return Database(
            url,
            # One for each thread that may want one at the same time: health and upkeep too, and one more.
            pool_size=BATCHERS + WORK_BATCHERS + config.list_threads + 3,
            statement_seconds=config.batch_seconds,
            lock_seconds=config.lock_seconds,
            pooled=pooled,
            metrics=metrics.database if metrics else None,
        )
    except ValueError as error:
        raise ConfigError(f"{name} is {error}") from None


def _announcer(config: Config, url: str) -> Announcer:
    try:
        return Announcer(config.direct_database_url or url)
    except ValueError as error:
        raise ConfigError(f"JOBS_DIRECT_DATABASE_URL is {error}") from None


def _bring_up_to_date(config: Config, url: str) -> None:
    """Run the migrations that are missing, over the direct URL where there is one."""
    name = "JOBS_DIRECT_DATABASE_URL" if config.direct_database_url else "JOBS_DATABASE_URL"
    database = _database(config, config.direct_database_url or url, name)
    try:
        database.schema_report(release=__version__)
        schema.migrate(database.engine)
    finally:
        database.close()


def _require_schema(report: SchemaReport) -> None:
    """Raise SchemaUnusable unless this release can run on the schema that was found."""
    if report.state is SchemaState.BEHIND:
        found = f"is at {report.found}" if report.found else "is empty"
        raise SchemaUnusable(
            f"the schema {found}, this release needs {report.known}: run 'jobs-service migrate'"
        )
    if report.state is SchemaState.TOO_NEW:
        raise SchemaUnusable(
            f"the schema is at {report.found}, which needs release {report.oldest_release} or newer;"
            f" this is {__version__}"
        )


async def keep_alive(postgres: EmbeddedPostgres) -> None:
    """Start the embedded Postgres again whenever it ends by itself."""
    loop = asyncio.get_running_loop()
    # One thread for as long as the process lives: the kernel ends Postgres with the thread that
    # started it.
    thread = ThreadPoolExecutor(1, thread_name_prefix="postgres")
    while True:
        ended, pidfd = asyncio.Event(), postgres.pidfd()
        loop.add_reader(pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(pidfd)
        _log.error("the embedded Postgres ended; starting it again")
        while postgres.exited():
            restart = loop.run_in_executor(thread, postgres.restart)
            try:
                await asyncio.shield(restart)
            except asyncio.CancelledError:
                # Whoever stops Postgres after us must find the one that is just being started.
                await asyncio.wait([restart])
                raise
            except EmbeddedPostgresError as error:
                _log.error("the embedded Postgres does not start", extra={"fields": {"error": str(error)}})
                await asyncio.sleep(1)
