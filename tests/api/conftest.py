"""Fixtures of several modules here."""

from collections.abc import Iterator

import pytest

from tests.conftest import service_settings
from tests.support.postgres import PostgresServer
from tests.support.service import ServiceProcess
from tests.support.world import World


@pytest.fixture(scope="module")
def replicas(postgres_18: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[World]]:
    """Two services on one database, patient with locks so that a slow machine changes nothing."""
    url = postgres_18.new_database()
    services, worlds = [], []
    try:
        for _ in range(2):
            folder = tmp_path_factory.mktemp("replica")
            settings = service_settings(url, folder) | {"JOBS_LOCK_SECONDS": "8"}
            services.append(ServiceProcess(folder, settings))
        worlds = [World(url, service.started().target) for service in services]
        yield worlds
    finally:
        for world in worlds:
            world.close()
        assert [service.stop() for service in services] == [0, 0]
