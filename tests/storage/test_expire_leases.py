"""The sweep as a duty: after a start, a failure or a pause every lease gets its time once more."""

import pytest

from jobs_service.model.job import AttemptOutcome, JobStatus
from jobs_service.storage.driver_errors import UnexpectedDatabaseError
from jobs_service.telemetry.metrics import Metrics
from jobs_service.upkeep.expire_leases import ExpireLeases
from jobs_service.upkeep.pauses import Pauses
from tests.support.service import wait_until
from tests.support.work import Claimed, Workshop
from tests.support.world import World


@pytest.fixture
def shop(stored_world: World) -> Workshop:
    return Workshop(stored_world)


def expired(shop: Workshop, lease: str) -> Claimed:
    """A claim whose lease, which lasted so long, is over."""
    claim = shop.running()
    shop.age(claim)
    shop.sql.execute(
        "UPDATE job_leases SET lease_duration = %s::interval WHERE job_id = %s", (lease, claim.job_id)
    )
    return claim


class NeverPaused(Pauses):
    """For runs whose place on the machine is not looked at."""

    def any_since(self, moment: float) -> bool:
        return False


def duty(shop: Workshop, watched: Pauses | None = None) -> ExpireLeases:
    return ExpireLeases(shop.world.database, shop.signals, watched or NeverPaused())


def is_running(shop: Workshop, claim: Claimed) -> bool:
    return shop.get(claim.job_id).status is JobStatus.RUNNING


def test_after_a_start_a_lease_gets_its_time_once_more_and_is_counted_when_it_is_taken(
    shop: Workshop,
) -> None:
    claim = expired(shop, "1.5 s")
    metrics = Metrics().work
    sweep = ExpireLeases(shop.world.database, shop.signals, NeverPaused(), metrics)
    sweep.run_once()
    assert is_running(shop, claim)

    def taken_back() -> bool:
        sweep.run_once()
        return not is_running(shop, claim)

    wait_until(taken_back, 20, "the job is taken back")
    counted = {
        sample.labels["outcome"]: sample.value
        for family in metrics.leases_expired.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    }
    assert counted == {"LEASE_EXPIRED": 1, "RUN_TIMED_OUT": 0}


def test_after_a_start_a_lease_that_run_timeout_cuts_short_gets_no_more_than_that(shop: Workshop) -> None:
    claim = expired(shop, "20 h")
    shop.sql.execute(
        """UPDATE job_leases SET start_time = now() - interval '3 s', run_deadline = now() - interval '2 s',
                  lease_expire_time = now() - interval '2 s' WHERE job_id = %s""",
        (claim.job_id,),
    )
    sweep = duty(shop)
    sweep.run_once()
    assert is_running(shop, claim)
    wait_until(lambda: sweep.run_once() or not is_running(shop, claim), 20, "the job is taken back")
    [attempt] = shop.get(claim.job_id).attempts
    assert attempt.outcome is AttemptOutcome.RUN_TIMED_OUT


def test_after_a_failure_a_lease_gets_its_time_once_more(shop: Workshop) -> None:
    sweep = duty(shop)
    sweep.run_once()
    claim = expired(shop, "1 s")
    wait_until(lambda: sweep.run_once() or not is_running(shop, claim), 20, "the first is taken back")
    later = expired(shop, "1 s")
    shop.sql.execute("ALTER TABLE job_leases RENAME TO gone")
    with pytest.raises(UnexpectedDatabaseError):
        sweep.run_once()
    shop.sql.execute("ALTER TABLE gone RENAME TO job_leases")
    sweep.run_once()
    assert is_running(shop, later)


def test_no_lease_is_over_that_lasts_longer_than_the_database_is_up(shop: Workshop) -> None:
    claim = expired(shop, "20 h")
    assert shop.sweep().taken_back == 0
    assert is_running(shop, claim)


class Clock:
    """A clock that stands still until it is set forward."""

    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_after_a_pause_a_lease_gets_its_time_once_more(shop: Workshop) -> None:
    clock = Clock()
    watched = Pauses(clock)
    sweep = duty(shop, watched)
    sweep.run_once()
    claim = expired(shop, "1 ms")
    clock.seconds += 60
    # The process goes on; its event loop has not ticked yet, and the sweep may be faster.
    assert sweep.run_once() is False
    assert is_running(shop, claim)
    watched.tick()
    clock.seconds += 1
    sweep.run_once()
    waits = expired(shop, "5 s")
    sweep.run_once()
    assert (is_running(shop, claim), is_running(shop, waits)) == (False, True)


def test_a_pause_is_what_the_event_loop_did_not_tick_in() -> None:
    clock = Clock()
    watched = Pauses(clock)
    for _ in range(10):
        clock.seconds += 2.9
        assert not watched.any_since(100.0)
        watched.tick()
    clock.seconds += 3.1
    assert watched.any_since(clock.seconds)
    watched.tick()
    assert watched.any_since(100.0)
    assert not watched.any_since(clock.seconds + 0.1)


def test_the_sweep_tells_which_jobs_were_taken_and_what_is_ready(shop: Workshop) -> None:
    revoked: list[object] = []
    ready: list[object] = []
    claim = expired(shop, "1 ms")
    shop.signals.revoked.subscribe(revoked.extend)
    shop.signals.ready.subscribe(ready.extend)
    sweep = duty(shop)
    wait_until(lambda: sweep.run_once() or bool(revoked), 10, "the job is taken back")
    assert revoked == [claim.job_id]
    # It waits before it is tried again: upkeep tells when.
    assert ready == []
    row = shop.sql.execute("SELECT ready FROM job_queue WHERE job_id = %s", (claim.job_id,)).fetchone()
    assert row == (False,)


def test_a_sweep_that_can_lock_nothing_waits_for_nothing(shop: Workshop) -> None:
    claim = expired(shop, "1 ms")
    with shop.sql.transaction():
        shop.sql.execute("SELECT FROM jobs WHERE job_id = %s FOR UPDATE", (claim.job_id,))
        sweep = duty(shop)
        for _ in range(3):
            assert sweep.run_once() is False
    assert shop.sweep().taken_back == 1
