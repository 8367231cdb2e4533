"""Minutes of mixed load with the database killed again and again: nothing lost, doubled, or growing."""

import os
import random
import signal
import statistics
import time
from pathlib import Path

import pytest

from tests.e2e.load import (
    ALICE,
    DATABASE_AWAY,
    Load,
    embedded_settings,
    embedded_url,
    lost_and_doubled,
    postmaster,
    serving,
)
from tests.support.client import Client
from tests.support.service import ServiceProcess, wait_until

SOAK_SECONDS = 300
KILL_EVERY_SECONDS = 30
CALLERS = 16
MAX_GROWTH_MIB = 60


class MixedLoad(Load):
    """Callers that do with their jobs what clients do: look, look again, list, and cancel some."""

    def _and_then(self, client: Client, job_id: str) -> None:
        self._try(client.status, job_id)
        self._try(client.get, job_id)
        dice = random.random()
        if dice < 0.1:
            self._try(client.list, page_size=20, include_total_size=True)
        elif dice < 0.3:
            # A cancel that got no answer may have been done: then the second one is told so.
            self._try(client.cancel, job_id, accepted="FAILED_PRECONDITION JOB_NOT_CANCELLABLE")


def resident_mib(service: ServiceProcess) -> float:
    """The memory that the service's process has, without its Postgres."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    [kib] = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
    return int(kib) / 1024


def kill_and_measure(load: Load, pid: int) -> float:
    """kill -9 of Postgres; the seconds until a create is acknowledged that began after it."""
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: load.last_began > killed, 60, f"calls succeed again: {load.outcomes}")
    return load.last_acknowledged - killed


@pytest.mark.long
@pytest.mark.timeout(SOAK_SECONDS + 300)
def test_a_soak_with_kills_of_postgres_loses_and_doubles_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = embedded_settings(tmp_path)
    recoveries: list[float] = []
    with serving(tmp_path, settings) as service:
        began = time.monotonic()
        with MixedLoad(service.target, ALICE, 1, callers=CALLERS) as load:
            load.wait_for_more(1000)
            before = resident_mib(service)
            while time.monotonic() - began < SOAK_SECONDS:
                due = time.monotonic() + KILL_EVERY_SECONDS
                wait_until(lambda: time.monotonic() > due, KILL_EVERY_SECONDS + 5, "the next kill")  # noqa: B023 - now
                recoveries.append(kill_and_measure(load, postmaster(settings)))
            load.wait_for_more(100)
        growth = resident_mib(service) - before
        lost, doubled = lost_and_doubled(embedded_url(settings), load.acknowledged)
        assert service.stop() == 0
    with capsys.disabled():
        print(
            f"\n{len(load.acknowledged)} jobs acknowledged, {lost} lost, {doubled} doubled;"
            f" {len(recoveries)} kills, seconds until calls succeed again: max {max(recoveries):.2f},"
            f" median {statistics.median(recoveries):.2f}; slowest call {load.slowest:.2f} s;"
            f" memory {before:.0f} MiB {growth:+.0f} MiB; {dict(load.outcomes)}"
        )
    assert (lost, doubled) == (0, 0)
    assert set(load.outcomes) <= {"OK", DATABASE_AWAY, "FAILED_PRECONDITION JOB_NOT_CANCELLABLE"}
    assert growth < MAX_GROWTH_MIB
