"""A Postgres of its own killed under load, again and again, and started again by somebody else."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import service_settings
from tests.e2e.faults import (
    Figures,
    RecordedLoad,
    require_clean_pool,
    require_no_sessions,
    wait_for_health,
    writer_of_a_dataset,
)
from tests.e2e.load import family, postmaster, running, serving
from tests.support.postgres import running_postgres
from tests.support.service import wait_until

CALLERS = 12
WINDOW_SECONDS = 5
KILLS = 3


@pytest.mark.long
def test_an_external_postgres_that_is_killed_loses_nothing_and_is_used_again_when_it_is_back(
    tmp_path: Path, say: Callable[[object], None]
) -> None:
    folder = tmp_path / "postgres"
    with running_postgres(folder) as postgres:
        url = postgres.new_database()
        user, dataset = writer_of_a_dataset(url)
        with serving(tmp_path, service_settings(url, tmp_path)) as service:
            with RecordedLoad(service.target, user, dataset, callers=CALLERS) as load:
                load.wait_for_more(200)
                before, recovered = load.measure(WINDOW_SECONDS), 0.0
                for _ in range(KILLS):
                    processes = family(postmaster({"JOBS_DATA_DIR": str(folder)}))
                    os.kill(postmaster({"JOBS_DATA_DIR": str(folder)}), signal.SIGKILL)
                    wait_until(postgres.postgres.exited, 10, "Postgres is dead")
                    wait_until(lambda: not running(processes), 20, "all of it")  # noqa: B023 - now
                    wait_for_health(service.target, "NOT_SERVING")
                    postgres.postgres.restart()
                    recovered = max(recovered, load.until_calls_succeed(time.monotonic()))
                wait_for_health(service.target, "SERVING")
                after = load.measure(WINDOW_SECONDS)
            load.require_outcomes()
            verdict = load.history.check(url)
            say(Figures(f"{KILLS} kill -9 of Postgres", verdict, recovered, before, after, load.slowest))
            verdict.require()
            require_clean_pool(url)
            assert service.stop() == 0
        require_no_sessions(url)
