"""Connections ended, refused and held, under load: calls go on by themselves, and none is left behind."""

import contextlib
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.conftest import service_settings
from tests.e2e.faults import wait_for_health, writer_of_a_dataset
from tests.e2e.load import CREATORS, Load, lost_and_doubled, serving
from tests.support.pgbouncer import running_pgbouncer
from tests.support.postgres import PostgresServer, connect, running_postgres
from tests.support.service import ServiceProcess, wait_until

# A connection for each of the batches, the lists, health and upkeep (opening.py).
POOL = 17
OURS = "FROM pg_stat_activity WHERE application_name = 'jobs-service' AND datname = current_database()"
AWAY = "UNAVAILABLE DATABASE_UNAVAILABLE"


@contextmanager
def loaded(
    url: str, folder: Path, settings: dict[str, str] | None = None, *, kept: int = 0
) -> Iterator[Load]:
    """A service and its callers; at the end nothing is lost, doubled or left behind.

    kept: how many connections to the server a pooler keeps for the next who comes.
    """
    user, dataset_id = writer_of_a_dataset(url)
    with serving(folder, service_settings(url, folder) | (settings or {})) as service:
        with Load(service.target, user, dataset_id) as load:
            load.wait_for_more()
            yield load
            load.wait_for_more()
        wait_for_health(service.target, "SERVING")
        load.check(url)
        _assert_clean(url, service, kept)


def _assert_clean(url: str, service: ServiceProcess, kept: int) -> None:
    with connect(url) as sql:
        wait_until(
            lambda: _count(sql, "AND state LIKE 'idle in transaction%'") == 0, 5, "no open transaction"
        )
        assert _count(sql) <= POOL
        assert service.stop() == 0
        wait_until(lambda: _count(sql) <= kept, 10, "all connections are closed")


def _count(sql: psycopg.Connection, condition: str = "") -> int:
    row = sql.execute(f"SELECT count(*) {OURS} {condition}".encode()).fetchone()
    assert row is not None
    return int(row[0])


def figures(name: str, load: Load, url: str, more: str) -> str:
    """One line on how it went."""
    lost, doubled = lost_and_doubled(url, load.acknowledged)
    return (
        f"\n{name}: {len(load.acknowledged)} acknowledged, {lost} lost, {doubled} doubled; {more};"
        f" slowest call {load.slowest:.2f} s; {dict(load.outcomes)}"
    )


@pytest.mark.long
@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pgbouncer"])
def test_a_storm_of_ended_connections_loses_nothing_and_leaves_none(
    postgres_18: PostgresServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], pooled: bool
) -> None:
    url = postgres_18.new_database()
    ended = 0
    with ExitStack() as stack:
        settings = {}
        if pooled:
            pgbouncer = stack.enter_context(running_pgbouncer(url, default_pool_size=4))
            settings = {"JOBS_DATABASE_URL": pgbouncer.url, "JOBS_DIRECT_DATABASE_URL": url}
        with loaded(url, tmp_path, settings, kept=4 if pooled else 0) as load, connect(url) as sql:
            until = time.monotonic() + 10
            while time.monotonic() < until:
                victims = [pid for (pid,) in sql.execute(f"SELECT pid {OURS}".encode())]
                for pid in random.sample(victims, min(2, len(victims))):
                    sql.execute("SELECT pg_terminate_backend(%s, 100)", (pid,))
                    ended += 1
    with capsys.disabled():
        print(figures("storm", load, url, f"{ended} connections ended"))
    assert ended > 20


@pytest.mark.long
def test_a_server_without_a_free_connection_is_unavailable_until_it_has_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_postgres(tmp_path / "postgres") as server:
        url = server.new_database()
        with loaded(url, tmp_path) as load:
            with ExitStack() as stack, connect(url) as sql:
                taken = take_every_connection(stack, url)
                # What the service had is ended, and somebody else is there at once.
                while _count(sql):
                    sql.execute(f"SELECT pg_terminate_backend(pid, 1000) {OURS}".encode())
                    taken += take_every_connection(stack, url)
                goal = load.outcomes[AWAY] + 3 * CREATORS
                wait_until(lambda: load.outcomes[AWAY] >= goal, 30, "calls are unavailable")
                freed_at = time.monotonic()
            wait_until(lambda: load.last_began > freed_at, 30, "calls succeed again")
            recovery = load.last_acknowledged - freed_at
        with capsys.disabled():
            print(figures("no free connection", load, url, f"{taken} taken, over in {recovery:.2f} s"))


def take_every_connection(stack: ExitStack, url: str) -> int:
    """Connect until the server has no connection left, not even one for a superuser."""
    taken = 0
    with contextlib.suppress(psycopg.OperationalError):
        while True:
            stack.enter_context(contextlib.closing(connect(url)))
            taken += 1
    return taken


@pytest.mark.long
def test_a_table_that_is_locked_holds_up_nobody_for_longer_than_the_limit(
    postgres_18: PostgresServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = postgres_18.new_database()
    with loaded(url, tmp_path) as load:
        with connect(url) as other:
            other.execute("BEGIN")
            other.execute("LOCK TABLE jobs")
            goal = load.outcomes[AWAY] + 4 * CREATORS
            wait_until(lambda: load.outcomes[AWAY] >= goal, 60, "calls are unavailable")
            other.execute("ROLLBACK")
        freed_at = time.monotonic()
        wait_until(lambda: load.last_began > freed_at, 30, "calls succeed again")
        recovery = load.last_acknowledged - freed_at
    with capsys.disabled():
        print(figures("locked table", load, url, f"over in {recovery:.2f} s"))
