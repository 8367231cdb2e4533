"""Fixtures for all tests: servers live as long as the run, databases and worlds as long as a test."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

# Before grpc is imported. Tests start programs as another user, which forks, and its handlers of that abort
# the child, and hold up the calls of this process, now and then.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

from tests.support.postgres import POSTGRES_15, PostgresServer, running_postgres
from tests.support.service import ServiceProcess
from tests.support.world import SECRET, World


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where every outside program must be there, a test that misses one has failed."""
    report = yield
    reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
    if "needs " in reason and os.environ.get("TESTS_REQUIRE_PROGRAMS"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but every program must be there: {reason}"
    return report


@pytest.fixture(scope="session")
def postgres_18(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """The wheel's Postgres 18."""
    with running_postgres(tmp_path_factory.mktemp("postgres-18")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_15(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """Debian's PostgreSQL 15; skips by name where it is missing."""
    if not (POSTGRES_15 / "postgres").exists():
        pytest.skip("needs PostgreSQL 15")
    with running_postgres(tmp_path_factory.mktemp("postgres-15"), POSTGRES_15) as server:
        yield server


@pytest.fixture(scope="session", params=["15", "18"])
def postgres(request: pytest.FixtureRequest) -> PostgresServer:
    """Each Postgres that we promise to run on: the oldest and the newest."""
    server: PostgresServer = request.getfixturevalue(f"postgres_{request.param}")
    return server


@pytest.fixture
def database_url(postgres: PostgresServer) -> str:
    """A migrated, empty database of the test's own, on each Postgres."""
    return postgres.new_database()


@pytest.fixture
def stored_world(database_url: str) -> Iterator[World]:
    """A world without a service, on each Postgres."""
    world = World(database_url)
    yield world
    world.close()


def service_settings(database_url: str, folder: Path) -> dict[str, str]:
    """Settings for a service on this database that takes the tests' tokens."""
    key_file = folder / "jwt-secret"
    key_file.write_text(SECRET)
    return {
        "JOBS_DATABASE_URL": database_url,
        "JOBS_JWT_KEY_FILE": str(key_file),
        "JOBS_DATA_DIR": str(folder / "data"),
    }


@pytest.fixture(scope="session")
def shared_service(
    postgres_18: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, ServiceProcess]]:
    """One service for all tests that leave it as it is: its database's URL, and the process."""
    folder = tmp_path_factory.mktemp("service")
    url = postgres_18.new_database()
    service = ServiceProcess(folder, service_settings(url, folder))
    try:
        yield url, service.started()
    finally:
        assert service.stop() == 0


@pytest.fixture
def world(shared_service: tuple[str, ServiceProcess]) -> Iterator[World]:
    """Users, data sets and clients of the shared service; other tests' jobs are in its database too."""
    url, service = shared_service
    world = World(url, service.target)
    yield world
    world.close()


@pytest.fixture(scope="module")
def module_world(shared_service: tuple[str, ServiceProcess]) -> Iterator[World]:
    """The same for a module's tables of cases, none of which looks at what the others leave."""
    url, service = shared_service
    world = World(url, service.target)
    yield world
    world.close()


@pytest.fixture(scope="session")
def work_service(
    postgres_18: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, ServiceProcess]]:
    """The same for tests that claim: there must be no jobs of others."""
    folder = tmp_path_factory.mktemp("work-service")
    url = postgres_18.new_database()
    service = ServiceProcess(folder, service_settings(url, folder))
    try:
        yield url, service.started()
    finally:
        assert service.stop() == 0


@pytest.fixture
def work_world(work_service: tuple[str, ServiceProcess]) -> Iterator[World]:
    """A world in whose database there are no jobs at the beginning."""
    url, service = work_service
    world = World(url, service.target)
    for table in (
        "jobs",
        "job_queue",
        "job_leases",
        "job_dependencies",
        "ended_dependencies",
        "dataset_limits",
    ):
        # Not TRUNCATE, which could meet the service's own upkeep in a deadlock.
        world.sql.execute(f"DELETE FROM {table}".encode())
    yield world
    world.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first: none is left for the end, to run alone."""
    items.sort(key=lambda item: "e2e" not in item.path.parts)
