"""Networks of a test's own: namespaces joined by cables on which packets vanish silently, one way or both.

A test marked `own_network`, with the fixtures tmp_path and say, runs in a pytest of its own within a network
namespace that nobody else sees and that goes with it. There it may add addresses and filters as it likes.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import cast

import pytest

from jobs_service.storage.embedded import DataFolder, EmbeddedPostgres
from jobs_service.storage.embedded.binaries import Binaries
from jobs_service.storage.embedded.launch import Launcher
from tests.support.postgres import PostgresServer

HOME, FAR = "10.213.0.1", "10.213.0.2"
"""The addresses of the two ends of a cable; only in namespaces that a test has made."""
FIGURES = "figures: "
_INSIDE = "TESTS_OWN_NETWORK"
_PORT = 5432


def run_in_own_network(item: pytest.Function) -> bool:
    """Run the test in a namespace of its own; False where this process is in it already.

    Skips where that is not permitted. What the test says of its figures is said again.
    """
    if _INSIDE in os.environ:
        return False
    folder, say = cast(Path, item.funcargs["tmp_path"]), cast(Callable[[object], None], item.funcargs["say"])
    _require_namespaces()
    test = f"{item.path}::{item.nodeid.partition('::')[2]}"
    script = 'ip link set lo up && exec "$@"'
    inner = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", test]
    # It has to end, and clean up, before the one outside loses its patience.
    options = ["--timeout=240", f"--rootdir={item.config.rootpath}", f"--basetemp={folder / 'inside'}"]
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script, "sh", *inner, *options],
        env=os.environ | {_INSIDE: "1"},
        cwd=item.config.rootpath,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for line in done.stdout.splitlines():
        if line.startswith(FIGURES):
            say(line.removeprefix(FIGURES))
    return True


def _require_namespaces() -> None:
    for program, package in (("ip", "iproute2"), ("nft", "nftables"), ("nsenter", "util-linux")):
        if shutil.which(program) is None:
            pytest.skip(f"needs {package}")
    trial = "ip link add name home type veth peer name far && nft add table inet trial"
    if subprocess.run(["unshare", "--net", "sh", "-c", trial], capture_output=True).returncode != 0:
        pytest.skip("needs network namespaces")


class Way(Enum):
    """In which direction packets vanish: the interface at whose end they are dropped."""

    THERE = ("far",)
    BACK = ("home",)
    BOTH = ("far", "home")


_DROP = """
table inet cut {{
  chain input {{
    type filter hook input priority 0
    iifname "{end}" drop
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Cable:
    """Joins this namespace with a second one, which lives as long as the process `pid`."""

    pid: int

    @property
    def prefix(self) -> list[str]:
        """What turns into a program within the second namespace."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--"]

    @contextmanager
    def cut(self, way: Way) -> Iterator[None]:
        """Let packets vanish; nobody is told."""
        for end in way.value:
            self._at(end, "nft -f -", stdin=_DROP.format(end=end))
        try:
            yield
        finally:
            for end in way.value:
                self._at(end, "nft delete table inet cut")

    def join(self) -> None:
        """Lay the cable."""
        self._at("home", f"ip link add name home type veth peer name far netns {self.pid}")
        for end, address in (("home", HOME), ("far", FAR)):
            self._at(end, f"ip addr add {address}/30 dev {end}")
            self._at(end, f"ip link set {end} up")

    def _at(self, end: str, command_line: str, stdin: str = "") -> None:
        command = [*(self.prefix if end == "far" else []), *command_line.split()]
        subprocess.run(command, input=stdin, check=True, text=True, timeout=10)


@contextmanager
def cable() -> Iterator[Cable]:
    """A second namespace, joined with this one."""
    script = "ip link set lo up && echo ready && exec cat"
    # It ends with its standard input, so with this process at the latest.
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"ready\n"
        laid = Cable(holder.pid)
        laid.join()
        yield laid


class _FarLauncher(Launcher):
    """Starts Postgres, and nothing else, at the far end, listening there."""

    def __init__(self, launcher: Launcher, prefix: list[str]) -> None:
        super().__init__(launcher.folder, launcher.account, launcher.mounted_at)
        object.__setattr__(self, "prefix", prefix)
        self.prefix: list[str]

    def _command(self, program: tuple[str | Path, ...]) -> list[str | Path]:
        listening = {"listen_addresses": "*", "port": str(_PORT), "hba_file": self.seen(_hba(self.folder))}
        options = [part for name, value in listening.items() for part in ("-c", f"{name}={value}")]
        return [*self.prefix, *super()._command((*program, *options))]


def _hba(folder: Path) -> Path:
    """Who may connect from where."""
    path = folder / "hba.conf"
    path.write_text("host all all all scram-sha-256\n")
    path.chmod(0o644)
    return path


class FarPostgres(EmbeddedPostgres):
    """A Postgres at the far end of a cable, spoken to over TCP."""

    def __init__(self, folder: DataFolder, far: Cable) -> None:
        super().__init__(folder, pg_bin=None)
        self._data, self._far = folder, far

    def url(self, host: str = FAR) -> str:
        """Its URL as seen from this end."""
        return f"postgresql+psycopg://jobs:{self._data.password()}@{host}:{_PORT}/jobs"

    def _run(self, binaries: Binaries, launcher: Launcher) -> None:
        super()._run(binaries, _FarLauncher(launcher, self._far.prefix))


@contextmanager
def far_postgres(folder: Path, far: Cable) -> Iterator[PostgresServer]:
    """Run a Postgres at the far end."""
    data = DataFolder(folder)
    data.prepare()
    data.lock()
    postgres = FarPostgres(data, far)
    postgres.start()
    try:
        yield PostgresServer(postgres)
    finally:
        postgres.stop()
        data.unlock()
