"""A service that reaches its database through PgBouncer in transaction mode; what happens to it."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs_service.transport.tokens import make_token
from tests.api import test_jobs, test_list_pages, test_races, test_visibility
from tests.conftest import service_settings
from tests.e2e.faults import wait_for_health, writer_of_a_dataset
from tests.e2e.load import Load, channel_to, serving
from tests.e2e.test_faults import assert_every_rpc_is_unavailable, kill_and_reap
from tests.support.client import Client
from tests.support.pgbouncer import PgBouncer, running_pgbouncer
from tests.support.postgres import PostgresServer, running_postgres
from tests.support.service import ServiceProcess, run_command
from tests.support.world import KEY, World

# The same tests as of a service with a database of its own; the fixtures below put PgBouncer in between.
dataset = test_jobs.dataset
test_a_created_job_can_be_read_listed_and_cancelled = (
    test_jobs.test_a_created_job_can_be_read_listed_and_cancelled
)
test_a_second_cancel_tells_who_was_first = test_jobs.test_a_second_cancel_tells_who_was_first
test_a_repeated_request_answers_the_job = (
    test_jobs.test_a_repeated_request_answers_the_job_that_the_first_one_made
)
test_a_program_makes_a_job_for_a_user = test_jobs.test_a_program_makes_a_job_for_a_user
test_a_list_stays_stable = test_list_pages.test_a_list_stays_stable_while_jobs_are_being_created
test_what_is_revoked_is_refused = test_visibility.test_what_is_revoked_is_refused_by_the_next_call
test_validate_only_writes_nothing = (
    test_visibility.test_validate_only_writes_nothing_and_answers_the_job_as_it_would_be
)
test_of_many_creates_one_makes_the_job = (
    test_races.test_of_many_creates_with_one_request_id_one_makes_the_job_and_all_get_it
)


def settings_behind(pgbouncer: PgBouncer, folder: Path) -> dict[str, str]:
    """Settings for a service that goes this way, and directly for what must."""
    return service_settings(pgbouncer.url, folder) | {"JOBS_DIRECT_DATABASE_URL": pgbouncer.direct_url}


@pytest.fixture(scope="module")
def behind(
    postgres_18: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[PgBouncer, list[ServiceProcess]]]:
    """Two replicas behind one PgBouncer."""
    folder = tmp_path_factory.mktemp("service")
    with running_pgbouncer(postgres_18.new_database()) as pgbouncer:
        settings = settings_behind(pgbouncer, folder) | {"JOBS_LOCK_SECONDS": "8"}
        with serving(folder, settings) as first, serving(folder, settings) as second:
            yield pgbouncer, [first, second]
            assert (first.stop(), second.stop()) == (0, 0)


@pytest.fixture(scope="module")
def shared_service(behind: tuple[PgBouncer, list[ServiceProcess]]) -> tuple[str, ServiceProcess]:
    """In the place of the one that all tests share."""
    pgbouncer, services = behind
    return pgbouncer.direct_url, services[0]


@pytest.fixture(scope="module")
def replicas(behind: tuple[PgBouncer, list[ServiceProcess]]) -> Iterator[list[World]]:
    """In the place of those that the races have."""
    pgbouncer, services = behind
    worlds = [World(pgbouncer.direct_url, service.target) for service in services]
    yield worlds
    for world in worlds:
        world.close()


@pytest.fixture
def own_pgbouncer(postgres_18: PostgresServer) -> Iterator[PgBouncer]:
    """One that the test may pause and kill."""
    with running_pgbouncer(postgres_18.new_database(), query_wait_timeout=1) as pgbouncer:
        yield pgbouncer


def test_what_the_operator_does_to_pgbouncer_is_unavailable_and_over_when_it_is_over(
    own_pgbouncer: PgBouncer, tmp_path: Path
) -> None:
    user, dataset_id = writer_of_a_dataset(own_pgbouncer.direct_url)
    with (
        serving(tmp_path, settings_behind(own_pgbouncer, tmp_path)) as service,
        channel_to(service.target) as channel,
    ):
        client = Client(channel, make_token(KEY, user.soeid))
        job_id = client.create(dataset_id=dataset_id).job.job_id
        own_pgbouncer.admin(f"PAUSE {_name(own_pgbouncer)}")
        # PgBouncer lets nobody wait for longer than its query_wait_timeout.
        assert_every_rpc_is_unavailable(client, job_id)
        own_pgbouncer.admin(f"RESUME {_name(own_pgbouncer)}")
        for command in ("KILL", "RESUME", "RECONNECT"):
            own_pgbouncer.admin(f"{command} {_name(own_pgbouncer)}")
        wait_for_health(service.target, "SERVING")
        assert client.get(job_id).job_id == job_id
        own_pgbouncer.stop(signal.SIGKILL)
        assert_every_rpc_is_unavailable(client, job_id)
        own_pgbouncer.restart()
        wait_for_health(service.target, "SERVING")
        assert client.cancel(job_id).job_id == job_id
        assert service.stop() == 0


def _name(pgbouncer: PgBouncer) -> str:
    return pgbouncer.direct_url.partition("?")[0].rpartition("/")[2]


def test_a_pooler_without_a_direct_url_is_refused_at_start(own_pgbouncer: PgBouncer, tmp_path: Path) -> None:
    done = run_command("check", settings=service_settings(own_pgbouncer.url, tmp_path))
    assert done.returncode == 3
    assert "JOBS_DIRECT_DATABASE_URL" in done.stderr
    done = run_command("check", settings=settings_behind(own_pgbouncer, tmp_path))
    assert done.returncode == 0


def test_migrations_take_the_direct_way(postgres_18: PostgresServer, tmp_path: Path) -> None:
    with running_pgbouncer(postgres_18.blank_database()) as pgbouncer:
        settings = settings_behind(pgbouncer, tmp_path)
        assert run_command("check", settings=settings).returncode == 5
        assert run_command("migrate", settings=settings).returncode == 0
        assert run_command("check", settings=settings).returncode == 0
        wrong = settings | {"JOBS_DIRECT_DATABASE_URL": f"{pgbouncer.url}?sslmode=disable"}
        done = run_command("migrate", settings=wrong)
    assert done.returncode == 3
    assert "JOBS_DIRECT_DATABASE_URL" in done.stderr


@pytest.mark.long
def test_restarts_of_pgbouncer_and_of_postgres_behind_it_lose_and_double_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        running_postgres(tmp_path / "postgres") as server,
        running_pgbouncer(server.new_database()) as pgbouncer,
    ):
        url = pgbouncer.direct_url
        user, dataset_id = writer_of_a_dataset(url)
        with serving(tmp_path, settings_behind(pgbouncer, tmp_path)) as service:
            with Load(service.target, user, dataset_id) as load:
                for _ in range(5):
                    load.wait_for_more()
                    pgbouncer.restart()
                    load.wait_for_more()
                    kill_and_reap(server, tmp_path)
                    server.postgres.restart()
                    load.wait_for_more()
                    pgbouncer.admin("RECONNECT")
                    load.wait_for_more()
                    pgbouncer.admin(f"PAUSE {_name(pgbouncer)}")
                    pgbouncer.admin(f"RESUME {_name(pgbouncer)}")
                load.wait_for_more()
            with capsys.disabled():
                print(
                    f"\nPgBouncer: {len(load.acknowledged)} jobs acknowledged, slowest call"
                    f" {load.slowest:.2f} s, {dict(load.outcomes)}"
                )
            load.check(url)
            assert service.stop() == 0
