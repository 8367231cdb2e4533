"""Fixtures for the end-to-end tests: the running command, shared by the tests of a module."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.demo import Demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """One service for all tests of a module that leave it as it is."""
    with Demo(tmp_path_factory.mktemp("demo")) as running:
        yield running


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A folder of the test's own for a service that it ends or spoils."""
    folder = tmp_path / "fresh"
    folder.mkdir()
    return folder
