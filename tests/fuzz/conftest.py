"""A service that may be mistreated, apart from the one that other tests share."""

from collections.abc import Iterator

import pytest

from tests.conftest import service_settings
from tests.fuzz.target import Target
from tests.support.postgres import PostgresServer
from tests.support.service import ServiceProcess
from tests.support.world import World


@pytest.fixture(scope="session")
def target(postgres_18: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """One service for all that is sent here; whatever it is, the service ends in good order."""
    folder = tmp_path_factory.mktemp("fuzzed")
    url = postgres_18.new_database()
    service = ServiceProcess(folder, service_settings(url, folder))
    try:
        world = World(url, service.started().target)
        try:
            yield Target(world, service)
        finally:
            world.close()
    finally:
        assert service.stop() == 0
