"""A primary and a synchronous standby, both real processes on loopback ports."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.support.postgres import POSTGRES_15
from tests.support.service import wait_until
from tests.support.unprivileged import as_other_user, free_port, reachable_folder

_OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "hot_standby": "on",
    "wal_sender_timeout": "5s",
    "wal_receiver_timeout": "5s",
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "200ms",
    "timezone": "UTC",
}


def run(program: str, *arguments: str | Path) -> None:
    """Run one of Postgres's programs to its end."""
    command: list[str | Path] = [POSTGRES_15 / program, *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        **as_other_user(),
    )
    assert done.returncode == 0, done.stderr


class Node:
    """One server: its files and, while it runs, its process."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.data = folder / name
        self.port = free_port()
        self.log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = [part for key, value in _OPTIONS.items() for part in ("-c", f"{key}={value}")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [POSTGRES_15 / "postgres", "-D", self.data, "-p", str(self.port), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                **as_other_user(),
            )
        wait_until(lambda: self.answers() or not self.running(), 30, f"{self.name} answers")
        assert self.running(), self.log.read_text()

    def running(self) -> bool:
        """Whether its process is there."""
        return self.process is not None and self.process.poll() is None

    def answers(self) -> bool:
        """Whether one can connect."""
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """Connect as the operator's tools do, in autocommit."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="jobs",
            dbname=database,
            autocommit=True,
            connect_timeout=5,
        )

    def say(self, statement: str) -> None:
        """Run a statement."""
        with self.connect() as sql:
            sql.execute(statement.encode())

    def signal(self, number: signal.Signals) -> None:
        """Send it to all its processes; SIGKILL as a machine that dies would."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        # The children first: none of them may see the end of the others and go on for a moment.
        for pid in [self.process.pid, *map(int, children.split())]:
            os.kill(pid, number)
        if number is signal.SIGKILL:
            self.process.wait(20)

    def stop(self) -> None:
        """A fast shutdown, whatever state it is in."""
        if self.process is not None and self.running():
            self.signal(signal.SIGCONT)
            # Not SIGINT: a primary would wait for a standby that is not there.
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(20)


class Pair:
    """The two servers. `primary` and `standby` change places with `fail_over`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.primary, self.standby = Node(folder, "a"), Node(folder, "b")
        self.nodes = (self.primary, self.standby)
        run(
            "initdb",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--username=jobs",
            "-D",
            self.primary.data,
        )
        self.primary.start()
        self.primary.say("CREATE DATABASE jobs")
        self._copy(self.standby, self.primary)
        self.wait_for_standby()

    def _copy(self, target: Node, source: Node) -> None:
        """Make the target a synchronous standby of the source, and start it."""
        connection = f"host=127.0.0.1 port={source.port} user=jobs application_name={target.name}"
        run("pg_basebackup", "-d", connection, "-D", target.data, "-R", "-X", "stream", "-c", "fast")
        source.say(f"ALTER SYSTEM SET synchronous_standby_names = '{target.name}'")
        source.say("SELECT pg_reload_conf()")
        target.start()

    def wait_for_standby(self) -> None:
        """Wait until commits wait for the standby."""
        wait_until(self._synchronous, 30, "the standby is synchronous")

    def _synchronous(self) -> bool:
        with self.primary.connect() as sql:
            return sql.execute("SELECT sync_state FROM pg_stat_replication").fetchall() == [("sync",)]

    def fail_over(self) -> None:
        """What an operator's tool does once the primary is dead: promote, and wait for no standby."""
        self.standby.say("ALTER SYSTEM RESET synchronous_standby_names")
        self.standby.say("SELECT pg_reload_conf()")
        self.standby.say("SELECT pg_promote(true, 30)")
        self.primary, self.standby = self.standby, self.primary

    def rebuild_standby(self) -> None:
        """The old primary comes back as a standby of the new one, on its old address."""
        shutil.rmtree(self.standby.data)
        self._copy(self.standby, self.primary)
        self.wait_for_standby()

    @property
    def url(self) -> str:
        """Both servers; whichever is the primary."""
        hosts = "&".join(f"host=127.0.0.1:{node.port}" for node in self.nodes)
        return f"postgresql://jobs@/jobs?{hosts}&target_session_attrs=read-write"

    def primary_url(self) -> str:
        """The one that is the primary now."""
        return f"postgresql://jobs@127.0.0.1:{self.primary.port}/jobs"

    def stop(self) -> None:
        """Stop both."""
        for node in self.nodes:
            node.stop()


@contextmanager
def running_pair() -> Iterator[Pair]:
    """Run a primary and its synchronous standby, with an empty database named jobs."""
    if not (POSTGRES_15 / "pg_basebackup").exists():
        pytest.skip("needs PostgreSQL 15")
    with reachable_folder() as folder:
        pair = None
        try:
            pair = Pair(folder)
            yield pair
        finally:
            if pair is not None:
                pair.stop()
