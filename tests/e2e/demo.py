"""The running command as the README starts it: its own Postgres, the demo users, a fresh data folder."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from jobs_service.storage.embedded import DataFolder, EmbeddedPostgres
from jobs_service.transport.tokens import development_key, make_token
from tests.support.postgres import connect
from tests.support.service import ServiceProcess, run_command

ADMIN, PROGRAM, ALICE, BOB, EVE = "ad00001", "sv00001", "al00001", "bo00001", "ev00001"


class Demo:
    """`jobs-service serve` in this folder, and the other commands with the same settings."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.data_dir = folder / "data"
        self.settings = {"JOBS_DATA_DIR": str(self.data_dir), **settings}
        self.service = ServiceProcess(folder, self.settings)
        self._tokens: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Wait until it serves."""
        try:
            self.service.started()
        except BaseException:
            self.service.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it in good order, unless that was done already."""
        code = self.service.stop()
        assert error is not None or code == 0, self.service.log_file.read_text()

    @property
    def target(self) -> str:
        """HOST:PORT of the listener."""
        return self.service.target

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run jobs-service with these arguments beside the service."""
        return self.command_with(self.settings, *arguments)

    def command_with(self, settings: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it with these settings in place of the service's own."""
        return run_command(*arguments, settings=settings | {"JOBS_LISTEN": self.target})

    def done(self, *arguments: str) -> str:
        """Run a command that must succeed and return what it says."""
        result = self.command(*arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def token(self, soeid: str) -> str:
        """A token for a SOEID. The command makes the first; a start of it takes a second."""
        if soeid not in self._tokens:
            first = not self._tokens
            key = development_key(self.data_dir)
            self._tokens[soeid] = self.done("token", soeid) if first else make_token(key, soeid)
        return self._tokens[soeid]

    @contextmanager
    def sql(self) -> Iterator[psycopg.Connection]:
        """A connection to the service's own Postgres."""
        with connect(EmbeddedPostgres(DataFolder(self.data_dir), pg_bin=None).url()) as connection:
            yield connection
