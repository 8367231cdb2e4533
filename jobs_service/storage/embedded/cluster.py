"""The database files: made whole or not at all, and never touched by another major version."""

import shutil
import tempfile
from pathlib import Path

from jobs_service.storage.embedded.binaries import Binaries
from jobs_service.storage.embedded.errors import EmbeddedPostgresError
from jobs_service.storage.embedded.folder import DataFolder, sync_folder
from jobs_service.storage.embedded.launch import Finished, Launcher

USER = "jobs"
DATABASE = "jobs"

_UNFINISHED = "postgres.new-"
_INITDB_SECONDS = 300


def ensure_cluster(folder: DataFolder, binaries: Binaries, launcher: Launcher) -> None:
    """Make the database files where there are none.

    Raises EmbeddedPostgresError where what is there is of another major version or not Postgres's at all.
    """
    for unfinished in folder.path.glob(_UNFINISHED + "*"):
        # Best effort: a killed initdb may still be writing there. Names are never used twice.
        shutil.rmtree(unfinished, ignore_errors=True)
    version_file = folder.cluster / "PG_VERSION"
    if version_file.exists():
        _refuse_another_version(folder, version_file.read_text().strip(), binaries)
        return
    if folder.cluster.exists() and any(folder.cluster.iterdir()):
        raise EmbeddedPostgresError(
            f"{folder.cluster} is there but holds no database; move it away or set another JOBS_DATA_DIR."
        )
    _make_cluster(folder, binaries, launcher)


def _refuse_another_version(folder: DataFolder, found: str, binaries: Binaries) -> None:
    if found != binaries.major:
        raise EmbeddedPostgresError(
            f"{folder.cluster} was made by PostgreSQL {found}, and {binaries.place.bin} is PostgreSQL "
            f"{binaries.version}; set JOBS_PG_BIN to programs of PostgreSQL {found} or use another folder."
        )


def _make_cluster(folder: DataFolder, binaries: Binaries, launcher: Launcher) -> None:
    work = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder.path))
    try:
        password_file = work / "password"
        password_file.touch(0o600)
        password_file.write_text(folder.ensure_password())
        launcher.give(password_file)
        launcher.give(work)
        fresh = work / "cluster"
        _initdb(fresh, password_file, binaries, launcher)
        _create_database(fresh, binaries, launcher)
        fresh.rename(folder.cluster)
        sync_folder(folder.path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _initdb(fresh: Path, password_file: Path, binaries: Binaries, launcher: Launcher) -> None:
    done = launcher.run(
        binaries.program("initdb"),
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        f"--username={USER}",
        f"--pwfile={launcher.seen(password_file)}",
        f"--pgdata={launcher.seen(fresh)}",
        timeout=_INITDB_SECONDS,
    )
    _require_success("initdb", done)


def _create_database(fresh: Path, binaries: Binaries, launcher: Launcher) -> None:
    # By a single process, before the files get their name: so files without the database never exist.
    done = launcher.run(
        *(binaries.program("postgres"), "--single", "-D", fresh, "-c", "exit_on_error=on", "postgres"),
        stdin=f"CREATE DATABASE {DATABASE}\n",
        timeout=_INITDB_SECONDS,
    )
    _require_success("the creation of the database", done)


def _require_success(what: str, done: Finished) -> None:
    if done.code != 0:
        last_lines = "\n".join(done.output.strip().splitlines()[-10:])
        raise EmbeddedPostgresError(
            f"{what} failed with exit code {done.code}; its last words:\n{last_lines}"
        )
