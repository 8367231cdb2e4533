"""Everything that can be killed, killed under load: what was acknowledged is there, once, and calls go on."""

import os
import signal
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest

from jobs.v1 import jobs_pb2
from jobs_service.model.errors import DatabaseUnavailable, TransactionRolledBack
from jobs_service.transport.tokens import make_token
from tests.conftest import service_settings
from tests.e2e.faults import free_port, health, jobs_there, wait_for_health, writer_of_a_dataset
from tests.e2e.load import (
    ALICE,
    DATABASE_AWAY,
    NEVER_ACCEPTED,
    NO_SERVICE,
    SHUTTING_DOWN,
    Load,
    Settings,
    channel_to,
    embedded_settings,
    embedded_url,
    family,
    lost_and_doubled,
    outcome_of,
    postgres_log,
    postmaster,
    running,
    serving,
)
from tests.support.client import Client, refused
from tests.support.postgres import PostgresServer, connect, open_database, running_postgres
from tests.support.scrape import scrape
from tests.support.service import STOP_SECONDS, ServiceProcess, run_command, wait_until
from tests.support.world import KEY


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[PostgresServer]:
    """A server that the test may kill."""
    with running_postgres(tmp_path / "postgres") as server:
        yield server


def own_postmaster(tmp_path: Path) -> int:
    """The process id of that server."""
    return postmaster({"JOBS_DATA_DIR": str(tmp_path / "postgres")})


@contextmanager
def frozen(pids: set[int]) -> Iterator[None]:
    """Processes that neither go on nor end, as on a machine that is paused."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def kill_and_reap(server: PostgresServer, tmp_path: Path) -> None:
    """kill -9 of a server that is our child."""
    os.kill(own_postmaster(tmp_path), signal.SIGKILL)
    wait_until(server.postgres.exited, 10, "Postgres is dead")


def end_connections(url: str) -> None:
    """End every connection to this database, and wait until they have ended."""
    with connect(url) as sql:
        sql.execute(
            """SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()"""
        )


def assert_every_rpc_is_unavailable(client: Client, job_id: str) -> None:
    """Each of the five says so, with the time after which to try again."""
    for call in (
        client.create,
        client.list,
        lambda: client.get(job_id),
        lambda: client.status(job_id),
        lambda: client.cancel(job_id),
    ):
        began = time.monotonic()
        with refused("UNAVAILABLE", "DATABASE_UNAVAILABLE") as refusal:
            call()
        assert refusal.it.retry_delay
        assert time.monotonic() - began < 10


def test_an_outage_of_the_database_is_unavailable_and_over_when_it_is_back(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    url = own_postgres.new_database()
    user, dataset = writer_of_a_dataset(url)
    with serving(tmp_path, service_settings(url, tmp_path)) as service:
        with Load(service.target, user, dataset) as load:
            load.wait_for_more()
            kill_and_reap(own_postgres, tmp_path)
            wait_for_health(service.target, "NOT_SERVING")
            with grpc.insecure_channel(service.target) as channel:
                client = Client(channel, make_token(KEY, user.soeid))
                assert_every_rpc_is_unavailable(client, next(iter(load.acknowledged.values())))
            own_postgres.postgres.restart()
            wait_for_health(service.target, "SERVING")
            load.wait_for_more()
        load.check(url)
        assert service.stop() == 0


def test_a_database_that_is_frozen_is_unavailable_after_the_limit_of_a_batch(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    url = own_postgres.new_database()
    user, dataset = writer_of_a_dataset(url)
    settings = service_settings(url, tmp_path) | {"JOBS_BATCH_SECONDS": "1"}
    with serving(tmp_path, settings) as service, channel_to(service.target) as channel:
        client = Client(channel, make_token(KEY, user.soeid))
        job_id = client.create(dataset_id=dataset).job.job_id
        # Its connection is in the pool from now on.
        client.get(job_id)
        with frozen(family(own_postmaster(tmp_path))), refused("UNAVAILABLE", "DATABASE_UNAVAILABLE"):
            client.call("GetJob", jobs_pb2.GetJobRequest(job_id=job_id), timeout=6)
        wait_for_health(service.target, "SERVING")
        assert client.get(job_id).job_id == job_id
        assert service.stop() == 0


def test_a_connection_that_is_lost_before_commit_is_an_unavailable_database(
    postgres_18: PostgresServer,
) -> None:
    url = postgres_18.new_database()
    database = open_database(url)

    def read_and_lose() -> None:
        with database.transaction() as tx:
            tx.access.is_empty()
            end_connections(url)

    with pytest.raises(DatabaseUnavailable):
        read_and_lose()
    database.close()


def test_a_connection_that_is_lost_when_all_was_read_spoils_nothing(postgres_18: PostgresServer) -> None:
    url = postgres_18.new_database()
    database = open_database(url, pool_size=1)

    def lose_and_read() -> None:
        with database.snapshot(seconds=5) as tx:
            end_connections(url)
            tx.access.is_empty()

    for _ in range(3):
        with database.snapshot(seconds=5) as tx:
            assert tx.access.is_empty()
            end_connections(url)
        with pytest.raises(TransactionRolledBack):
            lose_and_read()
    # The one connection of the pool was given back each time.
    with database.transaction() as tx:
        assert tx.access.is_empty()
    database.close()


def test_an_embedded_postgres_that_is_killed_comes_back_and_nothing_is_lost(tmp_path: Path) -> None:
    settings = embedded_settings(tmp_path)
    with serving(tmp_path, settings) as service:
        with Load(service.target, ALICE, 1) as load:
            for _ in range(3):
                load.wait_for_more()
                killed = postmaster(settings)
                os.kill(killed, signal.SIGKILL)
                load.wait_for_more()
                assert postmaster(settings) != killed
        wait_for_health(service.target, "SERVING")
        load.check(embedded_url(settings))
        last = family(postmaster(settings))
        assert service.stop() == 0
        assert not running(last)


def test_a_stop_while_the_embedded_postgres_is_being_started_again_leaves_none_behind(tmp_path: Path) -> None:
    settings = embedded_settings(tmp_path)
    with serving(tmp_path, settings) as service:
        os.kill(postmaster(settings), signal.SIGKILL)
        wait_until(lambda: service.lines("the embedded Postgres ended; starting it again"), 10, "noticed")
        assert service.stop() == 0
    pid_file = tmp_path / "data/postgres/postmaster.pid"
    wait_until(lambda: not pid_file.exists() or not running({postmaster(settings)}), 5, "no Postgres is left")
    with serving(tmp_path, settings) as service:
        assert service.stop() == 0


def test_a_service_that_is_killed_leaves_no_postgres_and_loses_nothing(tmp_path: Path) -> None:
    target = f"127.0.0.1:{free_port()}"
    settings = embedded_settings(tmp_path) | {"JOBS_LISTEN": target}
    with Load(target, ALICE, 1) as load:
        for _ in range(3):
            with serving(tmp_path, settings) as service:
                load.wait_for_more()
                processes = family(postmaster(settings))
                assert len(processes) > 5
                service.kill()
                wait_until(lambda: not running(processes), 20, "Postgres ends too")  # noqa: B023 - now
    with serving(tmp_path, settings) as service:
        load.check(embedded_url(settings), also={NO_SERVICE})
        assert service.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_data_folder_may_be_roots_on_a_long_path_and_in_use_for_other_things(tmp_path: Path) -> None:
    data = tmp_path / ("long" * 30) / ("path" * 30) / "data"
    data.mkdir(parents=True)
    for folder in (data.parent, data.parent.parent, data):
        folder.chmod(0o700)
    (data / "notes").mkdir(mode=0o750)
    (data / "notes/of-others").write_text("kept")
    assert len(str(data)) > 200
    settings = embedded_settings(tmp_path, data)
    with serving(tmp_path, settings) as service:
        with Load(service.target, ALICE, 1, callers=1) as load:
            load.wait_for_more(1)
        load.check(embedded_url(settings))
        assert service.stop() == 0
    assert (data / "notes/of-others").read_text() == "kept"
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (data.parent, data / "notes", data)]
    assert modes == [0o700, 0o750, 0o711]


def test_a_second_service_on_the_same_folder_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    settings = embedded_settings(tmp_path)
    with serving(tmp_path, settings) as first:
        second = run_command("serve", settings=settings | {"JOBS_LISTEN": "127.0.0.1:0"})
        assert second.returncode == 7
        assert "in use" in second.stderr
        assert health(first.target) == "SERVING"
        assert first.stop() == 0


def test_sigterm_to_the_whole_group_gives_every_accepted_call_its_result(tmp_path: Path) -> None:
    patient = {"JOBS_LOCK_SECONDS": "20", "JOBS_BATCH_SECONDS": "20", "JOBS_MAX_WAIT_SECONDS": "60"}
    settings = embedded_settings(tmp_path) | patient | {"JOBS_METRICS_LISTEN": "127.0.0.1:0"}
    request_ids = [str(uuid.uuid4()) for _ in range(100)]
    with serving(tmp_path, settings) as service:
        url, processes = embedded_url(settings), family(postmaster(settings))
        channels = [channel_to(service.target) for _ in range(4)]
        clients = [Client(channel, make_token(KEY, ALICE.soeid)) for channel in channels]
        clients[0].list()
        with connect(url) as other:
            other.execute("BEGIN")
            other.execute("LOCK TABLE job_events IN SHARE MODE")
            calls = [_create(clients[n % 4], request_id) for n, request_id in enumerate(request_ids)]
            wait_until(lambda: _blocked(url, other), 10, "a batch waits for the lock")
            # What gRPC has received and not handed over yet ends without an answer (grpc/grpc#41785).
            wait_until(
                lambda: sum(scrape(service).values("jobs_calls_in_progress")) >= 100, 20, "all are taken"
            )
            os.killpg(service.process.pid, signal.SIGTERM)
            wait_until(lambda: _outcome_of_a_list(clients[0]) == NO_SERVICE, 10, "new calls are refused")
            assert not [call.exception() for call in calls if call.done()]
            other.execute("COMMIT")
        job_ids = [call.result(20).job.job_id for call in calls]
        assert service.process.wait(STOP_SECONDS) == 0
        _assert_stopped_cleanly(settings, processes)
        for channel in channels:
            channel.close()
    with serving(tmp_path, settings) as service:
        assert lost_and_doubled(url, dict(zip(request_ids, job_ids, strict=True))) == (0, 0)
        assert service.stop() == 0


def _in_progress(service: ServiceProcess) -> float:
    return sum(scrape(service).values("jobs_calls_in_progress"))


def _create(client: Client, request_id: str) -> Any:
    fields: dict[str, Any] = {"run_parameters": {"file_path": "a.csv"}, "request_id": request_id}
    request = jobs_pb2.CreateJobRequest(dataset_id=1, run_type=jobs_pb2.RUN_TYPE_IMPORT, **fields)
    return client.stub.CreateJob.future(request, metadata=client.metadata, timeout=30)


def _outcome_of_a_list(client: Client) -> str:
    try:
        client.list()
    except grpc.RpcError as error:
        return outcome_of(error)
    return "OK"


def _blocked(url: str, other: psycopg.Connection) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
    with connect(url) as sql:
        row = sql.execute(query, (other.info.backend_pid,)).fetchone()
    return row is not None and row[0] > 0


def _assert_stopped_cleanly(settings: Settings, processes: set[int]) -> None:
    assert not running(processes)
    assert not (Path(settings["JOBS_DATA_DIR"]) / "postgres/postmaster.pid").exists()
    assert postgres_log(settings).rstrip().endswith("database system is shut down")


@pytest.mark.parametrize("group", [False, True], ids=["the process", "its group"])
def test_sigterm_while_clients_keep_calling_ends_soon_and_loses_nothing(tmp_path: Path, group: bool) -> None:
    settings = embedded_settings(tmp_path)
    with serving(tmp_path, settings) as service:
        processes = family(postmaster(settings))
        with Load(service.target, ALICE, 1, callers=32) as load:
            load.wait_for_more(200)
            send = os.killpg if group else os.kill
            send(service.process.pid, signal.SIGTERM)
            # They go on calling meanwhile.
            assert service.process.wait(15) == 0
        _assert_stopped_cleanly(settings, processes)
    with serving(tmp_path, settings) as service:
        load.check(embedded_url(settings), also={NO_SERVICE, NEVER_ACCEPTED, SHUTTING_DOWN})
        # Who was refused was refused before anything was done.
        assert load.outcomes[DATABASE_AWAY] == 0
        assert jobs_there(embedded_url(settings)) == len(load.acknowledged)
        assert "not properly shut down" not in postgres_log(settings)
        assert service.stop() == 0


def test_connections_that_the_database_ends_are_replaced_and_nothing_is_lost(
    postgres_18: PostgresServer, tmp_path: Path
) -> None:
    url = postgres_18.new_database()
    user, dataset = writer_of_a_dataset(url)
    with serving(tmp_path, service_settings(url, tmp_path)) as service:
        with Load(service.target, user, dataset) as load:
            for _ in range(30):
                load.wait_for_more(20)
                end_connections(url)
            load.wait_for_more()
        load.check(url)
        wait_for_health(service.target, "SERVING")
        assert service.stop() == 0
