"""PgBouncer in transaction mode, between a service and a Postgres of the tests."""

import contextlib
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL, make_url

from tests.support.postgres import connect
from tests.support.service import wait_until
from tests.support.unprivileged import as_other_user, free_port, give, reachable_folder

PROGRAM = Path("/usr/sbin/pgbouncer")


class PgBouncer:
    """One process in front of the server of this URL. settings: lines of its configuration that win."""

    def __init__(self, folder: Path, server_url: str, **settings: object) -> None:
        self.direct_url = server_url
        self._server = make_url(server_url)
        self._port = free_port()
        self._config = folder / "pgbouncer.ini"
        self._log = folder / "pgbouncer.log"
        users = folder / "users.txt"
        users.write_text(f'"{self._server.username}" "{self._server.password or ""}"\n')
        own: dict[str, object] = {
            "listen_addr": "127.0.0.1",
            "listen_port": self._port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256" if self._server.password else "trust",
            "auth_file": users,
            "admin_users": self._server.username,
            "pool_mode": "transaction",
            # Fewer than the service has of its own.
            "default_pool_size": 4,
            "server_login_retry": 0.2,
        }
        lines = [f"{name} = {value}" for name, value in (own | settings).items()]
        to_server = f"* = host={self._server.query.get('host') or self._server.host}"
        if self._server.port:
            to_server += f" port={self._server.port}"
        self._config.write_text("\n".join(["[databases]", to_server, "[pgbouncer]", *lines, ""]))
        for path in (self._config, users):
            path.chmod(0o600)
            give(path)
        self._process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [PROGRAM, self._config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **as_other_user(),
            )
        wait_until(lambda: self._listens() or process.poll() is not None, 10, "PgBouncer listens")
        assert process.poll() is None, self._log.read_text()
        return process

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
            return True
        return False

    @property
    def url(self) -> str:
        """The URL through here to what direct_url leads to directly."""
        return self._url(self._server.database).render_as_string(hide_password=False)

    def _url(self, database: str | None) -> URL:
        server = self._server
        return URL.create(
            "postgresql", server.username, server.password, "127.0.0.1", self._port, database, {}
        )

    def admin(self, command: str) -> list[tuple[object, ...]]:
        """Say this on the admin console."""
        with connect(self._url("pgbouncer")) as console:
            cursor = console.execute(command.encode())
            return cursor.fetchall() if cursor.description else []

    def client(self) -> psycopg.Connection:
        """Another application that comes this way, in autocommit."""
        return connect(self.url)

    def restart(self) -> None:
        """kill -9, and start anew."""
        self.stop(signal.SIGKILL)
        self._process = self._start()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it, at once."""
        self._process.send_signal(number)
        self._process.wait(20)


@contextmanager
def running_pgbouncer(server_url: str, **settings: object) -> Iterator[PgBouncer]:
    """Run one; skips where the program is missing."""
    if not PROGRAM.exists():
        pytest.skip("needs PgBouncer")
    with reachable_folder() as folder:
        pgbouncer = PgBouncer(folder, server_url, **settings)
        try:
            yield pgbouncer
        finally:
            pgbouncer.stop()
