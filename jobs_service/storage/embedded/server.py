"""The life of the server process: start, watch, stop, start again."""

import logging
import os
import signal
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

from jobs_service.storage.embedded.binaries import Binaries, find_binaries, runnable
from jobs_service.storage.embedded.cluster import DATABASE, USER, ensure_cluster
from jobs_service.storage.embedded.errors import EmbeddedPostgresError
from jobs_service.storage.embedded.folder import DataFolder, require_linux
from jobs_service.storage.embedded.launch import Launcher, account_for, launcher_for
from jobs_service.storage.embedded.leftover import end_leftover, read_pid_file

_log = logging.getLogger(__name__)

# Given at every start and not written to a file, so that a folder made by an earlier release gets them too.
_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "cluster_name": "jobs-service",
    # One file for each day of the week, begun anew a week later.
    "logging_collector": "on",
    "log_directory": "log",
    "log_filename": "postgres-%a.log",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_truncate_on_rotation": "on",
}
_READY_SECONDS = 120
_POLL_SECONDS = 0.02
# Processes of a killed server notice one after the other that it is gone.
_ORPHANS_SECONDS = 15
_ORPHANS_MESSAGE = "pre-existing shared memory block"
_STOP_SIGNALS = ((signal.SIGINT, 20), (signal.SIGQUIT, 10), (signal.SIGKILL, None))


class EmbeddedPostgres:
    """A Postgres server that is a child of this process and ends with it, however this process ends."""

    def __init__(self, folder: DataFolder, *, pg_bin: Path | None) -> None:
        """`pg_bin` is the folder of postgres and initdb; None looks in the usual places."""
        self._folder = folder
        self._pg_bin = pg_bin
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd: int | None = None

    def url(self) -> str:
        """A SQLAlchemy URL, for any process that may read the password file; nothing else is needed.

        require_auth makes the server prove that it knows the password too: anybody may take the name of an
        abstract socket while the server is down.
        """
        password, host = quote(self._folder.password(), safe=""), quote(self._folder.socket_name, safe="")
        return f"postgresql+psycopg://{USER}:{password}@/{DATABASE}?host={host}&require_auth=scram-sha-256"

    def start(self) -> None:
        """Start the server and return when it accepts connections. The folder must be prepared and locked.

        Call it from the main thread: the kernel stops the server when the thread that started it ends. Raises
        EmbeddedPostgresError.
        """
        require_linux()
        if not self._folder.locked or (self._process is not None and not self.exited()):
            raise RuntimeError("start() needs the lock of the data folder and no server that still runs")
        try:
            account = account_for(self._folder.cluster)
            launcher = launcher_for(self._folder.path, account)
            end_leftover(self._folder.cluster, launcher)
            binaries = runnable(find_binaries(self._pg_bin), launcher)
            ensure_cluster(self._folder, binaries, launcher)
            self._run(binaries, launcher)
        except OSError as error:
            raise EmbeddedPostgresError(
                f"Postgres cannot be started in {self._folder.path}: {error}."
            ) from error

    def restart(self) -> None:
        """Start the server again after it exited(), from the main thread. pidfd() is then another one."""
        if not self.exited():
            raise RuntimeError("restart() is for a server that has exited")
        self.start()

    def stop(self) -> None:
        """Stop the server, open transactions are rolled back; nothing happens where none runs."""
        if self._process is not None:
            for number, seconds in _STOP_SIGNALS:
                self._process.send_signal(number)
                try:
                    self._process.wait(seconds)
                    break
                except subprocess.TimeoutExpired:
                    _log.warning("Postgres did not end within %s s of %s", seconds, number.name)
        self._close_pidfd()

    def exited(self) -> bool:
        """Whether the server that was started here is gone, of itself or by stop(); False before a start."""
        return self._process is not None and self._process.poll() is not None

    def pidfd(self) -> int:
        """A file descriptor that becomes readable when the server exits.

        It is closed by stop() and start(): take it out of the event loop before.
        """
        if self._pidfd is None:
            raise RuntimeError("there is no server to watch")
        return self._pidfd

    def _close_pidfd(self) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def _run(self, binaries: Binaries, launcher: Launcher) -> None:
        patience = time.monotonic() + _ORPHANS_SECONDS
        while True:
            self._spawn(binaries, launcher)
            if self._becomes_ready():
                return
            last_words = self._last_words()
            if _ORPHANS_MESSAGE not in last_words or time.monotonic() > patience:
                raise EmbeddedPostgresError(
                    f"Postgres ended while it was starting; its last words:\n{last_words}"
                )
            time.sleep(0.1)

    def _spawn(self, binaries: Binaries, launcher: Launcher) -> None:
        settings = {**_SETTINGS, "unix_socket_directories": self._folder.socket_name}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._close_pidfd()
        with open(os.open(self._folder.start_log, flags, 0o600), "wb") as log:
            self._process = launcher.spawn(
                binaries.program("postgres"), "-D", self._folder.cluster, *options, output=log
            )
        self._pidfd = os.pidfd_open(self._process.pid)

    def _becomes_ready(self) -> bool:
        """False where it exits instead. Where it does neither, it is stopped and an error raised."""
        deadline = time.monotonic() + _READY_SECONDS
        while not self._ready():
            if self.exited():
                return False
            if time.monotonic() > deadline:
                self.stop()
                raise EmbeddedPostgresError(
                    f"Postgres was not ready within {_READY_SECONDS} s; its last words:\n{self._last_words()}"
                )
            time.sleep(_POLL_SECONDS)
        return True

    def _ready(self) -> bool:
        # What pg_ctl -w goes by. pg_isready would take another server on the same address for this one.
        lines = read_pid_file(self._folder.cluster)
        return (
            len(lines) > 7
            and lines[0] == str(self._process and self._process.pid)
            and lines[7].strip() == "ready"
        )

    def _last_words(self) -> str:
        # The collector's log begins where the other one ends, if the server got as far as that.
        logs = [self._folder.start_log, *(self._folder.cluster / "log").glob("postgres-*.log")]
        started = self._folder.start_log.stat().st_mtime
        recent = sorted(
            (log for log in logs if log.stat().st_mtime >= started), key=lambda log: log.stat().st_mtime
        )
        return "\n".join(
            line for log in recent for line in log.read_text(errors="replace").splitlines()[-10:]
        )
