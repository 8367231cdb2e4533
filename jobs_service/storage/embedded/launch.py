"""Starting programs as the account that Postgres runs as, where it can reach the data folder."""

import os
import pwd
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from jobs_service.storage.embedded import exec_helper
from jobs_service.storage.embedded.errors import EmbeddedPostgresError

_HELPER = Path(exec_helper.__file__)
# No PG* variable and no locale of the service's may change what the server does.
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"}
# Standard folders that are empty or unimportant to Postgres; the mount over one of them is seen by Postgres
# alone.
_MOUNT_POINTS = (Path("/mnt"), Path("/media"), Path("/srv"), Path("/opt"))


@dataclass(frozen=True)
class Account:
    """A user of the system other than the one the service runs as."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True)
class Finished:
    """What a program left: its exit code, and its output and error output in one text."""

    code: int
    output: str


@dataclass(frozen=True)
class Launcher:
    """Starts programs with the data folder as their working folder.

    `account` None is the service's own user. With `mounted_at` they see the data folder there, in a mount
    namespace of their own, because the way to its real place is closed to the account.
    """

    folder: Path
    account: Account | None
    mounted_at: Path | None = None

    def seen(self, path: Path) -> Path:
        """A path, absolute and as we see it, as the started programs see it."""
        if self.mounted_at is None or not path.is_relative_to(self.folder):
            return path
        return self.mounted_at / path.relative_to(self.folder)

    def run(self, *program: str | Path, stdin: str = "", timeout: float = 60) -> Finished:
        """Run a program to its end. Raises EmbeddedPostgresError after `timeout` seconds."""
        try:
            done = subprocess.run(
                self._command(program),
                check=False,
                input=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                env=_ENVIRONMENT,
                start_new_session=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise EmbeddedPostgresError(f"{program[0]} did not end within {timeout:.0f} s.") from error
        return Finished(done.returncode, done.stdout)

    def spawn(self, *program: str | Path, output: IO[bytes]) -> "subprocess.Popen[bytes]":
        """Start a program that gets SIGINT when the thread calling this ends: call it from the main thread.

        It has a session of its own, so that Ctrl-C, or SIGTERM to the service's process group, does not reach
        it before the service has finished with it.
        """
        return subprocess.Popen(
            self._command(program),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_ENVIRONMENT,
            start_new_session=True,
        )

    def _command(self, program: tuple[str | Path, ...]) -> list[str | Path]:
        account, mount = ("-", "-"), ("-", "-")
        if self.account is not None:
            account = (str(self.account.uid), str(self.account.gid))
        if self.mounted_at is not None:
            mount = (str(self.folder), str(self.mounted_at))
        python = (sys.executable, "-I", "-S", _HELPER, str(os.getpid()))
        seen = (self.seen(part) if isinstance(part, Path) else part for part in program)
        return [*python, *account, *mount, self.seen(self.folder), *seen]

    def give(self, path: Path) -> None:
        """Make the account the owner of a file of ours."""
        if self.account is not None:
            os.chown(path, self.account.uid, self.account.gid, follow_symlinks=False)


def launcher_for(folder: Path, account: Account | None) -> Launcher:
    """A launcher whose programs can enter the data folder.

    Tried for real and not worked out from modes: access lists, read-only mounts and security modules count
    too. Raises EmbeddedPostgresError, naming the folder in the way, where there is no such launcher.
    """
    direct = Launcher(folder, account)
    outcome = direct.run()
    if outcome.code == 0:
        return direct
    if account is None or outcome.code != exec_helper.NO_FOLDER:
        raise EmbeddedPostgresError(
            f"Postgres cannot be started in {folder}: {outcome.output.strip()}; "
            "run the service as this folder's owner and not as root, or set JOBS_DATABASE_URL."
        )
    for mount_point in filter(Path.is_dir, _MOUNT_POINTS):
        mounted = replace(direct, mounted_at=mount_point)
        if mounted.run().code == 0:
            return mounted
    raise EmbeddedPostgresError(
        f"User {account.name}, which Postgres runs as, cannot pass {_first_closed(folder, account)} "
        f"on the way to {folder}, and a private mount is not permitted here; "
        "let others pass that folder (chmod o+x) or set another JOBS_DATA_DIR."
    )


def _first_closed(folder: Path, account: Account) -> Path:
    for ancestor in reversed([folder, *folder.parents]):
        if Launcher(ancestor, account).run().code != 0:
            return ancestor
    return folder


def account_for(cluster: Path) -> Account | None:
    """The account for the database files in `cluster`, there already or not; None is the service's own user.

    Raises EmbeddedPostgresError where they belong to somebody we cannot run as, or we are root and there is
    nobody.
    """
    owner = _owner(cluster)
    if os.geteuid() != 0:
        if owner not in (None, os.geteuid()):
            raise EmbeddedPostgresError(
                f"{cluster} belongs to user {_name(owner)}; run the service as the user that made it, "
                "or set another JOBS_DATA_DIR."
            )
        return None
    return _account_of_newcomer() if owner is None else _account_of_owner(cluster)


def _owner(cluster: Path) -> int | None:
    try:
        (cluster / "PG_VERSION").stat()
    except FileNotFoundError:
        return None
    except PermissionError:
        pass  # closed to us: somebody else's, and the folder itself still says whose
    return cluster.stat().st_uid


def _name(uid: int | None) -> str:
    try:
        return pwd.getpwuid(uid if uid is not None else os.geteuid()).pw_name
    except KeyError:
        return str(uid)


def _account_of_newcomer() -> Account:
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedPostgresError(
        "Postgres does not run as root, and there is neither a user postgres nor a user nobody; "
        "add one (useradd --system postgres), run the service as another user, or set JOBS_DATABASE_URL."
    )


def _account_of_owner(cluster: Path) -> Account:
    found = cluster.stat()
    if found.st_uid == 0:
        raise EmbeddedPostgresError(
            f"{cluster} belongs to root, and Postgres does not run as root; "
            "give it back to the user that made it (chown -R)."
        )
    return Account(_name(found.st_uid), found.st_uid, found.st_gid)
