"""Fixtures for the end-to-end tests: the running command, shared by the tests of a module."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.demo import Demo
from tests.support.netns import FIGURES, run_in_own_network


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test marked own_network runs in a network namespace of its own."""
    if pyfuncitem.get_closest_marker("own_network") is None:
        return None
    return run_in_own_network(pyfuncitem) or None


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


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[object], None]:
    """Print a line of figures that is seen although the test passes."""

    def print_line(line: object) -> None:
        with capsys.disabled():
            print(f"\n{FIGURES}{line}")

    return print_line
