"""Starting and asking embedded servers, here and in processes of their own, for the tests beside it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from jobs_service.storage import embedded
from jobs_service.storage.embedded import DataFolder, EmbeddedPostgres

ROOT = os.geteuid() == 0
# For processes of their own: where they find the package, installed or not.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(str(embedded.__file__)).parents[3])}

OWNER = """
import json, os, signal, sys
from pathlib import Path
from jobs_service.storage.embedded import DataFolder, EmbeddedPostgres, EmbeddedPostgresError

folder = DataFolder(Path(sys.argv[1]))
try:
    folder.prepare()
    folder.lock()
    postgres = EmbeddedPostgres(folder, pg_bin=None)
    postgres.start()
except EmbeddedPostgresError as error:
    sys.exit(str(error))
signal.signal(signal.SIGTERM, lambda *_: print("terminated", flush=True))
print(json.dumps(int((folder.cluster / "postmaster.pid").read_text().split()[0])), flush=True)
while True:
    signal.pause()
"""


class Owner:
    """A process that holds a data folder and its server, as the service does."""

    def __init__(self, path: Path, *, wrapper: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, "-c", OWNER, str(path)],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def line(self) -> Any:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def postmaster(self) -> int:
        return int(json.loads(self.line()))

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=20)


@contextmanager
def owning(path: Path, *, wrapper: tuple[str, ...] = ()) -> Iterator[Owner]:
    """An owner of the folder, started as an argument of `wrapper`, and killed at the end."""
    owner = Owner(path, wrapper=wrapper)
    try:
        yield owner
    finally:
        owner.kill()


@contextmanager
def locked(path: Path) -> Iterator[DataFolder]:
    folder = DataFolder(path)
    folder.prepare()
    folder.lock()
    try:
        yield folder
    finally:
        folder.unlock()


@contextmanager
def running(path: Path, pg_bin: Path | None = None) -> Iterator[EmbeddedPostgres]:
    with locked(path) as folder:
        postgres = EmbeddedPostgres(folder, pg_bin=pg_bin)
        try:
            postgres.start()
            yield postgres
        finally:
            postgres.stop()


def connect(postgres: EmbeddedPostgres) -> "psycopg.Connection[tuple[Any, ...]]":
    return psycopg.connect(postgres.url().replace("+psycopg", ""), autocommit=True)


def ask(postgres: EmbeddedPostgres, query: str) -> Any:
    with connect(postgres) as connection:
        row = connection.execute(query.encode()).fetchone()
        return row and row[0]


def remember(postgres: EmbeddedPostgres, value: int) -> None:
    with connect(postgres) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (value int)")
        connection.execute("INSERT INTO kept VALUES (%s)", [value])


def remembered(postgres: EmbeddedPostgres) -> Any:
    return ask(postgres, "SELECT array_agg(value ORDER BY value) FROM kept")


def until(condition: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def postmaster_of(path: Path) -> int:
    return int((path / "postgres" / "postmaster.pid").read_text().split()[0])
