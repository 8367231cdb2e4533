"""The life of the embedded Postgres, with real processes: every way that it and its owner may end."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg
import pytest
import sqlalchemy

from jobs_service.storage.embedded import DataFolder, EmbeddedPostgres, EmbeddedPostgresError
from tests.storage.embedded_owner import (
    ENVIRONMENT,
    ask,
    connect,
    locked,
    owning,
    postmaster_of,
    remember,
    remembered,
    running,
    until,
)


def test_rows_survive_a_stop_and_a_start(tmp_path: Path) -> None:
    with running(tmp_path / "data") as postgres:
        remember(postgres, 1)
    assert not (tmp_path / "data/postgres/postmaster.pid").exists()
    with running(tmp_path / "data") as postgres:
        assert remembered(postgres) == [1]


def test_settings_are_those_of_a_server_that_loses_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as postgres:
        names = ("fsync", "synchronous_commit", "TimeZone", "listen_addresses", "max_connections")
        found = [ask(postgres, f"SHOW {name}") for name in names]
    assert found == ["on", "on", "UTC", "", "100"]
    assert list((tmp_path / "postgres/log").glob("postgres-*.log"))


def test_stop_may_come_twice_and_before_a_start(tmp_path: Path) -> None:
    with running(tmp_path) as postgres:
        assert not postgres.exited()
        postgres.stop()
        assert postgres.exited()
        postgres.stop()
    EmbeddedPostgres(DataFolder(tmp_path), pg_bin=None).stop()


def test_sqlalchemy_connects_with_the_url(tmp_path: Path) -> None:
    with running(tmp_path) as postgres:
        engine = sqlalchemy.create_engine(postgres.url())
        with engine.connect() as connection:
            assert connection.scalar(sqlalchemy.text("SELECT current_database()")) == "jobs"
        engine.dispose()


def test_a_second_process_connects_with_the_folder_alone(tmp_path: Path) -> None:
    script = (
        "import pathlib, psycopg, sys\n"
        "from jobs_service.storage.embedded import DataFolder, EmbeddedPostgres\n"
        "url = EmbeddedPostgres(DataFolder(pathlib.Path(sys.argv[1])), pg_bin=None).url()\n"
        "print(psycopg.connect(url.replace('+psycopg', '')).execute('SELECT 42').fetchone()[0])"
    )
    with running(tmp_path):
        output = subprocess.check_output(
            [sys.executable, "-c", script, tmp_path], env=ENVIRONMENT, timeout=30
        )
    assert output == b"42\n"


def test_a_wrong_password_is_refused(tmp_path: Path) -> None:
    with running(tmp_path) as postgres:
        wrong = postgres.url().replace("+psycopg", "").replace("jobs:", "jobs:x")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(wrong)


def test_the_url_of_a_folder_without_a_database_says_so(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match="start the service once"):
        EmbeddedPostgres(DataFolder(tmp_path), pg_bin=None).url()


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"  # ended, and not yet fetched by the machine's init


def family(postmaster: int) -> list[int]:
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    return [postmaster, *map(int, children)]


def test_killing_the_owner_ends_postgres_and_the_next_start_recovers(tmp_path: Path) -> None:
    with owning(tmp_path) as owner:
        processes = family(owner.postmaster())
        remember(EmbeddedPostgres(DataFolder(tmp_path), pg_bin=None), 1)

        owner.kill()
        with running(tmp_path) as postgres:  # at once: the old server may still be shutting down
            assert remembered(postgres) == [1]
        until(lambda: all(map(is_gone, processes)))


def test_killing_the_owner_shuts_postgres_down_cleanly(tmp_path: Path) -> None:
    with owning(tmp_path) as owner:
        processes = family(owner.postmaster())
        owner.kill()
        until(lambda: all(map(is_gone, processes)))
        assert not (tmp_path / "postgres/postmaster.pid").exists()


def test_a_start_ends_the_server_that_an_earlier_owner_left(tmp_path: Path) -> None:
    with locked(tmp_path) as folder:
        left = EmbeddedPostgres(folder, pg_bin=None)
        left.start()
        remember(left, 1)
    with running(tmp_path) as postgres:  # and the old one stays a zombie until exited() fetches it
        assert left.exited()
        assert remembered(postgres) == [1]
    left.stop()


def test_a_killed_postmaster_is_seen_and_restarted(tmp_path: Path) -> None:
    with running(tmp_path) as postgres:
        remember(postgres, 1)
        with connect(postgres):
            os.kill(postmaster_of(tmp_path), signal.SIGKILL)
            assert select.select([postgres.pidfd()], [], [], 10)[0]
            until(postgres.exited)
            postgres.restart()
            assert remembered(postgres) == [1]
            assert not select.select([postgres.pidfd()], [], [], 0)[0]


def test_a_server_that_runs_is_not_started_again(tmp_path: Path) -> None:
    with running(tmp_path) as postgres:
        with pytest.raises(RuntimeError):
            postgres.restart()
        with pytest.raises(RuntimeError):
            postgres.start()


def test_a_start_without_the_lock_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        EmbeddedPostgres(DataFolder(tmp_path), pg_bin=None).start()


def write_pid_file(path: Path, pid: int) -> None:
    cluster = path / "postgres"
    lines = [pid, cluster, int(time.time()), 5432, "", "", "1 1", "ready"]
    (cluster / "postmaster.pid").write_text("".join(f"{line}\n" for line in lines))


def test_a_pid_file_that_names_another_program_does_not_stop_the_start(tmp_path: Path) -> None:
    with running(tmp_path):
        pass
    with subprocess.Popen(["sleep", "60"]) as other:
        write_pid_file(tmp_path, other.pid)
        with running(tmp_path) as postgres:
            assert ask(postgres, "SELECT 1") == 1
        assert other.poll() is None
        other.kill()


def test_a_pid_file_that_names_a_thread_does_not_stop_the_start(tmp_path: Path) -> None:
    with running(tmp_path):
        pass
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    assert thread.native_id is not None
    write_pid_file(tmp_path, thread.native_id)
    try:
        with running(tmp_path) as postgres:
            assert ask(postgres, "SELECT 1") == 1
    finally:
        done.set()
        thread.join()


def test_sigterm_to_the_group_of_the_owner_does_not_reach_postgres(tmp_path: Path) -> None:
    with owning(tmp_path) as owner:
        postmaster = owner.postmaster()
        os.killpg(owner.process.pid, signal.SIGTERM)
        assert owner.line() == "terminated"
        assert ask(EmbeddedPostgres(DataFolder(tmp_path), pg_bin=None), "SELECT 1") == 1
        assert postmaster_of(tmp_path) == postmaster


def test_an_initdb_that_was_cut_short_leaves_nothing_half_made(tmp_path: Path) -> None:
    with owning(tmp_path) as owner:
        until(lambda: list(tmp_path.glob("postgres.new-*/cluster/PG_VERSION")))
        owner.kill()
        assert not (tmp_path / "postgres").exists()

        for _ in range(2):  # what the killed one was still writing, the second start finds quiet
            with running(tmp_path) as postgres:
                assert ask(postgres, "SELECT current_database()") == "jobs"
        assert not list(tmp_path.glob("postgres.new-*"))


def test_a_failed_start_tells_the_last_words_of_postgres(tmp_path: Path) -> None:
    with running(tmp_path):
        pass
    with (tmp_path / "postgres/postgresql.auto.conf").open("a") as file:
        file.write("no_such_setting = 1\n")
    with pytest.raises(EmbeddedPostgresError, match="no_such_setting"), running(tmp_path):
        pass


def test_a_stranger_on_the_address_of_the_server_stops_the_start(tmp_path: Path) -> None:
    with running(tmp_path):
        pass
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind("\0" + DataFolder(tmp_path).socket_name[1:] + "/.s.PGSQL.5432")
        stranger.listen()
        with pytest.raises(EmbeddedPostgresError, match="Address already in use"), running(tmp_path):
            pass
