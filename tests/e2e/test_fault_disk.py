"""The disk of Postgres is full: writes are UNAVAILABLE, nothing is lost, and it ends when there is room."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from jobs_service.transport.tokens import make_token
from tests.conftest import service_settings
from tests.e2e.faults import (
    Figures,
    RecordedLoad,
    require_clean_pool,
    require_no_sessions,
    wait_for_health,
    writer_of_a_dataset,
)
from tests.e2e.load import (
    ALICE,
    DATABASE_AWAY,
    channel_to,
    embedded_settings,
    embedded_url,
    postgres_log,
    serving,
)
from tests.support.client import Client
from tests.support.disk import Ballast, small_disk
from tests.support.postgres import PostgresServer, connect, running_postgres
from tests.support.service import wait_until
from tests.support.world import KEY, User

Say = Callable[[object], None]

DATA_MEGABYTES = 150
WINDOW_SECONDS = 5


@contextmanager
def postgres_on(disk: Path) -> Iterator[PostgresServer]:
    """A Postgres whose files are on this small disk, and its write-ahead log on another one with room."""
    with small_disk(disk / "wal", 300) as wal, running_postgres(disk) as server:
        server.postgres.stop()
        log = disk / "postgres/pg_wal"
        owner = log.stat()
        os.chown(wal, owner.st_uid, owner.st_gid)
        for part in log.iterdir():
            _move(part, wal / part.name)
        log.rmdir()
        log.symlink_to("../wal")
        server.postgres.restart()
        yield server


def _move(source: Path, target: Path) -> None:
    owner = source.stat()
    if source.is_dir():
        source.rmdir()
        target.mkdir(0o700)
    else:
        target.write_bytes(source.read_bytes())
        source.unlink()
    os.chown(target, owner.st_uid, owner.st_gid)


def require_reads(target: str, user: User, job_id: str) -> None:
    """AssertionError unless each of the reads is answered."""
    with channel_to(target) as channel:
        client = Client(channel, make_token(KEY, user.soeid))
        assert client.get(job_id).job_id == client.status(job_id).job_id == job_id
        assert client.list(page_size=10, include_total_size=True).jobs


@pytest.mark.long
def test_a_full_disk_makes_creates_unavailable_and_leaves_reads_until_there_is_room(
    tmp_path: Path, say: Say
) -> None:
    with small_disk(tmp_path / "disk", DATA_MEGABYTES) as disk, postgres_on(disk) as postgres:
        url, ballast = postgres.new_database(), Ballast(disk)
        user, dataset = writer_of_a_dataset(url)
        with serving(tmp_path, service_settings(url, tmp_path)) as service:
            with RecordedLoad(service.target, user, dataset) as load:
                load.wait_for_more(100)
                before = load.measure(WINDOW_SECONDS)
                ballast.fill()
                wait_until(lambda: load.outcomes[DATABASE_AWAY] > 100, 60, "creates are refused")
                for job_id in list(load.acknowledged.values())[:20]:
                    require_reads(service.target, user, job_id)
                wait_for_health(service.target, "SERVING")
                ballast.remove()
                recovered = load.until_calls_succeed(time.monotonic())
                after = load.measure(WINDOW_SECONDS)
            load.require_outcomes()
            verdict = load.history.check(url)
            say(Figures("data disk full", verdict, recovered, before, after, load.slowest))
            verdict.require()
            require_clean_pool(url)
            assert service.stop() == 0
        require_no_sessions(url)


def _fill_the_log(url: str, ballast: Ballast) -> None:
    """Let Postgres begin one segment of its log after the other until there is no room for the next."""
    ballast.fill()
    try:
        with connect(url) as sql:
            for _ in range(100):
                sql.execute("SELECT pg_logical_emit_message(false, 'tests', 'x')")
                sql.execute("SELECT pg_switch_wal()")
                ballast.fill()
    except psycopg.OperationalError:
        return
    raise AssertionError("the log never filled")


@pytest.mark.long
def test_an_embedded_postgres_whose_log_has_no_room_comes_back_when_there_is_room(
    tmp_path: Path, say: Say
) -> None:
    with small_disk(tmp_path / "disk", DATA_MEGABYTES) as disk:
        settings, ballast = embedded_settings(tmp_path, disk), Ballast(disk)
        with serving(tmp_path, settings) as service:
            url = embedded_url(settings)
            with RecordedLoad(service.target, ALICE, 1) as load:
                load.wait_for_more(100)
                before = load.measure(WINDOW_SECONDS)
                _fill_the_log(url, ballast)
                wait_until(lambda: load.outcomes[DATABASE_AWAY] > 100, 60, "calls are refused")
                wait_for_health(service.target, "NOT_SERVING")
                ballast.remove()
                recovered = load.until_calls_succeed(time.monotonic())
                wait_for_health(service.target, "SERVING")
                after = load.measure(WINDOW_SECONDS)
            load.require_outcomes()
            verdict = load.history.check(url)
            say(Figures("disk of the log full", verdict, recovered, before, after, load.slowest))
            verdict.require()
            assert "PANIC" in postgres_log(settings)
            require_clean_pool(url)
            assert service.stop() == 0
