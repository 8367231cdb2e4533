"""A newer schema put under replicas that go on serving."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs_service import __version__
from tests.conftest import service_settings
from tests.e2e.faults import two_replicas, wait_for_health
from tests.e2e.load import DATABASE_AWAY, serving
from tests.e2e.migrator import LOCKED
from tests.support.postgres import PostgresServer, connect
from tests.support.service import run_command, wait_until

Say = Callable[[object], None]

NEXT_RELEASE = "99.0.0"


def begin_migration(url: str, folder: Path, *oldest_release: str) -> "subprocess.Popen[bytes]":
    """Start the migrator as a process of its own."""
    arguments = [sys.executable, "-m", "tests.e2e.migrator", url, str(folder), *oldest_release]
    return subprocess.Popen(arguments, stdin=subprocess.DEVNULL)


def revision(url: str) -> str:
    """The revision of the schema."""
    with connect(url) as sql:
        row = sql.execute("SELECT version_num FROM alembic_version").fetchone()
    assert row is not None
    return str(row[0])


def test_replicas_go_on_under_a_newer_schema_until_it_says_that_they_are_too_old(
    postgres_18: PostgresServer, tmp_path: Path, say: Say
) -> None:
    url = postgres_18.new_database()
    settings = service_settings(url, tmp_path)
    with two_replicas(url, tmp_path, [settings] * 2) as replicas:
        for load in replicas.loads:
            load.wait_for_more(50)
        assert begin_migration(url, tmp_path / "adds").wait(60) == 0
        assert revision(url) == "8001"
        for load in replicas.loads:
            load.wait_for_more(50)
        # Nobody was told anything, and no replica doubted for a moment.
        assert [load.outcomes[DATABASE_AWAY] for load in replicas.loads] == [0, 0]
        assert not any(service.lines("not ready") for service in replicas.services)
        for load in replicas.loads:
            load.stop()
        with serving(tmp_path, settings) as third:
            assert third.stop() == 0
        slowest = max(load.slowest for load in replicas.loads)
        assert begin_migration(url, tmp_path / "ends", NEXT_RELEASE).wait(60) == 0
        for service in replicas.services:
            wait_for_health(service.target, "NOT_SERVING")
        refused = run_command("serve", settings=settings | {"JOBS_LISTEN": "127.0.0.1:0"})
        assert refused.returncode == 5
        assert NEXT_RELEASE in refused.stderr
        assert __version__ in refused.stderr
    say(f"newer schema under two replicas: 0 calls refused, slowest call {slowest:.2f} s")


@pytest.mark.long
def test_a_migration_that_waits_for_a_long_transaction_gives_up_and_the_replicas_go_on(
    postgres_18: PostgresServer, tmp_path: Path, say: Say
) -> None:
    url = postgres_18.new_database()
    with two_replicas(url, tmp_path, [service_settings(url, tmp_path)] * 2) as replicas:
        for load in replicas.loads:
            load.wait_for_more(50)
        before = revision(url)
        with connect(url) as other:
            other.execute("BEGIN")
            other.execute("SELECT count(*) FROM jobs")
            began = time.monotonic()
            assert begin_migration(url, tmp_path / "adds").wait(60) == LOCKED
            gave_up = time.monotonic()
            recovered = [load.until_calls_succeed(gave_up) for load in replicas.loads]
            other.execute("ROLLBACK")
        assert revision(url) == before
        told = sum(load.outcomes[DATABASE_AWAY] for load in replicas.loads)
        for service in replicas.services:
            wait_until(lambda: len(service.lines("not ready")) < 2, 1, "ready all the time")  # noqa: B023 - now
            wait_for_health(service.target, "SERVING")
        assert begin_migration(url, tmp_path / "again").wait(60) == 0
    say(
        f"migration behind a long transaction: gave up after {gave_up - began:.1f} s, calls succeed again"
        f" after {max(recovered):.2f} s; {told} calls UNAVAILABLE meanwhile, slowest"
        f" {max(load.slowest for load in replicas.loads):.2f} s"
    )
