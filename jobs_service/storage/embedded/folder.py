"""The data folder: who may use it, what is in it, and the password of the database."""

import fcntl
import hashlib
import os
import secrets
import stat
import sys
import tempfile
from pathlib import Path

from jobs_service.storage.embedded.errors import DataFolderInUse, EmbeddedPostgresError

# Anybody may pass through to what is their own (Postgres runs as another user), nobody may look around.
MODE_AS_ROOT = 0o711


class DataFolder:
    """The folder of JOBS_DATA_DIR; it may hold files of others. Ours are `lock` and `postgres*`."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.cluster = self.path / "postgres"
        self.password_file = self.path / "postgres-password"
        self.start_log = self.path / "postgres-start.log"
        self._lock_file = self.path / "lock"
        self._lock_fd: int | None = None

    @property
    def locked(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock_fd is not None

    @property
    def socket_name(self) -> str:
        """The server's abstract socket: no file, so the folder's path may be long and nothing gets stale.

        The colon is for psycopg: it takes a host whose second character is one for a Windows path and hands
        it to libpq as it is, while it would look up any other name that starts with @ in the DNS.
        """
        return "@:jobs-" + hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]

    def prepare(self) -> None:
        """Make the folder where it is missing. Raises EmbeddedPostgresError where that is not possible."""
        require_linux()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_a_shared_folder()
            if os.geteuid() == 0 and stat.S_IMODE(self.path.stat().st_mode) != MODE_AS_ROOT:
                self.path.chmod(MODE_AS_ROOT)
        except OSError as error:
            raise EmbeddedPostgresError(
                f"The data folder {self.path} cannot be prepared ({error.strerror}); "
                "use another JOBS_DATA_DIR."
            ) from error

    def _refuse_a_shared_folder(self) -> None:
        # Closing / or /tmp to everybody else would break the machine.
        if self.path == Path("/") or self.path.stat().st_mode & stat.S_ISVTX:
            raise EmbeddedPostgresError(
                f"{self.path} is a folder that others use; set JOBS_DATA_DIR to one for the service alone."
            )

    def lock(self) -> None:
        """Take the folder for this process until unlock() or its end. Raises DataFolderInUse at once."""
        if self.locked:
            return
        fd = self._open_lock_file()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        except BlockingIOError:
            holder = os.pread(fd, 20, 0).decode(errors="replace").strip()
            os.close(fd)
            raise DataFolderInUse(
                f"The data folder {self.path} is in use by process {holder or 'unknown'}; "
                "stop that one or set another JOBS_DATA_DIR."
            ) from None
        self._lock_fd = fd

    def _open_lock_file(self) -> int:
        try:
            return os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise EmbeddedPostgresError(
                f"The lock {self._lock_file} cannot be opened ({error.strerror}); "
                "run the service as the owner of the data folder or set another JOBS_DATA_DIR."
            ) from error

    def unlock(self) -> None:
        """Give the folder back. The file stays: were it removed, two processes could lock two files."""
        if self._lock_fd is not None:
            os.ftruncate(self._lock_fd, 0)
            os.close(self._lock_fd)
            self._lock_fd = None

    def password(self) -> str:
        """The database user's password. Raises EmbeddedPostgresError where there is none that we may read."""
        try:
            return self.password_file.read_text()
        except FileNotFoundError:
            raise EmbeddedPostgresError(
                f"There is no {self.password_file}: start the service once, or put the file back."
            ) from None
        except OSError as error:
            raise EmbeddedPostgresError(
                f"{self.password_file} cannot be read ({error.strerror}); run this as the service's user."
            ) from error

    def ensure_password(self) -> str:
        """The password of the database user, made up where there is none yet."""
        if not self.password_file.exists():
            write_durably(self.password_file, secrets.token_urlsafe(32))
        return self.password()


def require_linux() -> None:
    """Raises EmbeddedPostgresError elsewhere: parent-death signals and abstract sockets are Linux's."""
    if sys.platform != "linux":
        raise EmbeddedPostgresError("The embedded Postgres needs Linux; set JOBS_DATABASE_URL.")


def write_durably(path: Path, text: str) -> None:
    """Write a file of mode 0600 that is there whole or not at all, also after a power failure."""
    fd, temporary = tempfile.mkstemp(prefix=path.name + ".", dir=path.parent)
    with open(fd, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make renames in a folder survive a power failure."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
