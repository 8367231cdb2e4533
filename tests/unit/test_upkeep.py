"""The upkeep loop: what is due runs, what fails is told once, and it ends when it is told to."""

import logging
import threading

import pytest
from prometheus_client import CollectorRegistry

from jobs_service.telemetry.metrics import Metrics
from jobs_service.upkeep.loop import Upkeep

PATIENCE = 10


class Noting:
    """A duty that notes its runs, fails while it is told to, and has more to do so many times."""

    def __init__(self, name: str = "noting", every: float = 10.0) -> None:
        self.name, self.every = name, every
        self.runs = 0
        self.fails = False
        self.more = 0
        self.ran = threading.Semaphore(0)

    def run_once(self) -> bool:
        self.runs += 1
        self.ran.release()
        if self.fails:
            raise RuntimeError("as told")
        self.more -= 1
        return self.more >= 0


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


def value(metrics: Metrics, name: str, duty: str = "noting") -> float | None:
    return metrics.registry.get_sample_value(name, {"duty": duty})


def test_a_duty_runs_at_once_and_then_when_its_time_has_come(metrics: Metrics) -> None:
    duty = Noting(every=10)
    upkeep = Upkeep([duty], metrics.duties)
    upkeep.run_due(100.0)
    assert upkeep.run_due(101.0) == pytest.approx(110, abs=1)
    assert duty.runs == 1
    upkeep.run_due(111.0)
    assert duty.runs == 2


def test_each_duty_has_a_time_of_its_own(metrics: Metrics) -> None:
    often, seldom = Noting("often", every=1), Noting("seldom", every=100)
    upkeep = Upkeep([seldom, often], metrics.duties)
    for moment in range(100, 120, 2):
        upkeep.run_due(moment)
    assert (often.runs, seldom.runs) == (10, 1)


def test_a_duty_with_more_to_do_runs_again_at_once(metrics: Metrics) -> None:
    duty = Noting()
    duty.more = 1
    upkeep = Upkeep([duty], metrics.duties)
    assert upkeep.run_due(100.0) == 100.0
    assert upkeep.run_due(100.0) > 100.0
    assert duty.runs == 2


def test_a_failure_is_logged_when_it_begins_and_when_it_is_over(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    duty = Noting()
    upkeep = Upkeep([duty], metrics.duties)
    with caplog.at_level(logging.INFO):
        for fails in (False, True, True, True, False, False):
            duty.fails = fails
            upkeep.run_once(duty)
    assert [record.getMessage() for record in caplog.records] == ["a duty fails", "a duty works again"]
    assert value(metrics, "jobs_duty_runs_total") == 6
    assert value(metrics, "jobs_duty_failures_total") == 3
    assert value(metrics, "jobs_duty_seconds_count") == 6


def test_a_duty_that_fails_is_not_run_all_the_time_and_keeps_no_other_waiting(metrics: Metrics) -> None:
    failing, other = Noting("failing"), Noting("other")
    failing.fails = True
    upkeep = Upkeep([failing, other], metrics.duties)
    for _ in range(5):
        upkeep.run_due(100.0)
    assert (failing.runs, other.runs) == (1, 1)


def test_a_duty_is_shown_before_it_has_run(metrics: Metrics) -> None:
    Upkeep([Noting()], metrics.duties)
    assert value(metrics, "jobs_duty_runs_total") == 0


def test_the_thread_runs_duties_until_it_is_stopped(metrics: Metrics) -> None:
    duty = Noting(every=0.001)
    upkeep = Upkeep([duty], metrics.duties)
    upkeep.start()
    for _ in range(3):
        assert duty.ran.acquire(timeout=PATIENCE)
    upkeep.stop()
    assert upkeep.ended(PATIENCE)
    runs = duty.runs
    assert upkeep.run_due(1e12) > 0
    assert duty.runs == runs


def test_whoever_stops_it_does_not_wait_for_the_next_run(metrics: Metrics) -> None:
    duty = Noting(every=3600)
    upkeep = Upkeep([duty], metrics.duties)
    upkeep.start()
    assert duty.ran.acquire(timeout=PATIENCE)
    upkeep.stop()
    assert upkeep.ended(PATIENCE)


def test_upkeep_that_never_began_has_ended(metrics: Metrics) -> None:
    upkeep = Upkeep([Noting()], metrics.duties)
    upkeep.stop()
    assert upkeep.ended(0)
