"""Fairness: the flood of one data set starves no other, whatever it is that comes as a flood."""

from datetime import timedelta
from uuid import UUID

from jobs_service.core.signals import Signals
from jobs_service.model.job import JobStatus, RunType
from jobs_service.upkeep.promote_jobs import PromoteJobs
from tests.support.queued import claim_request, claimed_ids, flood, limit
from tests.support.world import User, World

FLOOD = 5_000


def claims_until(world: World, worker: User, wanted: set[UUID], at_once: int = 1) -> int:
    """Claim one after the other until these are claimed; returns how many claims that took."""
    claims = 0
    while wanted:
        [ids] = claimed_ids(world, claim_request(worker, at_once))
        assert ids, f"{len(wanted)} are never claimed"
        claims += len(ids)
        wanted -= set(ids)
    return claims


def flooded(world: World) -> tuple[User, int]:
    """A flood of one data set that is being worked on."""
    worker, hot = world.service_user(), world.dataset()
    flood(world, hot, FLOOD)
    claimed_ids(world, claim_request(worker, 100))
    return worker, hot


def test_jobs_that_come_after_a_flood_are_served_in_turn_with_it(stored_world: World) -> None:
    worker, _ = flooded(stored_world)
    later = {job_id for _ in range(5) for job_id in flood(stored_world, stored_world.dataset(), 10)}
    assert claims_until(stored_world, worker, later) <= 60


def test_a_limited_data_set_at_the_head_of_the_queue_holds_nobody_up(stored_world: World) -> None:
    worker, full = stored_world.service_user(), stored_world.dataset()
    limit(stored_world, full, 2)
    flood(stored_world, full, FLOOD)
    later = {job_id for _ in range(5) for job_id in flood(stored_world, stored_world.dataset(), 10)}
    assert claims_until(stored_world, worker, later) <= 52


def test_a_data_set_that_sends_job_after_job_does_not_keep_a_flood_waiting(stored_world: World) -> None:
    worker, hot = flooded(stored_world)
    steady, of_hot = stored_world.dataset(), 0
    for _ in range(20):
        mine = set(flood(stored_world, steady, 1))
        of_hot += claims_until(stored_world, worker, mine) - 1
    assert 15 <= of_hot <= 25
    assert hot != steady


def test_a_flood_that_waited_for_its_time_does_not_come_before_everybody(stored_world: World) -> None:
    worker, late = stored_world.service_user(), stored_world.dataset()
    flood(stored_world, late, 1_000, start_delay=timedelta(hours=1))
    flood(stored_world, stored_world.dataset(), 1_000)
    claimed_ids(stored_world, claim_request(worker, 1_000))
    later = set(flood(stored_world, stored_world.dataset(), 10))
    stored_world.sql.execute("UPDATE job_queue SET available_time = now() WHERE NOT ready")
    promote = PromoteJobs(stored_world.database, Signals())
    assert promote.run_once()
    assert promote.run_once()
    assert claims_until(stored_world, worker, later) <= 20


def test_a_flood_that_waited_for_another_job_does_not_come_before_everybody(stored_world: World) -> None:
    worker, late = stored_world.service_user(), stored_world.dataset()
    flood(stored_world, stored_world.dataset(), 1_000)
    waiting = waiting_jobs(stored_world, late, 1_000)
    claimed_ids(stored_world, claim_request(worker, 1_000))
    later = set(flood(stored_world, stored_world.dataset(), 10))
    with stored_world.database.transaction() as tx:
        tx.queue.enqueue(waiting)
    assert claims_until(stored_world, worker, later) <= 20


def waiting_jobs(world: World, dataset_id: int, jobs: int) -> list[UUID]:
    """Jobs that wait for another."""
    ids = flood(world, dataset_id, jobs)
    with world.database.transaction() as tx:
        tx.queue.remove(ids)
    return ids


def test_a_retry_keeps_its_turn(stored_world: World) -> None:
    worker, dataset = stored_world.service_user(), stored_world.dataset()
    [failed] = flood(stored_world, dataset, 1)
    claimed_ids(stored_world, claim_request(worker))
    flood(stored_world, stored_world.dataset(), 50)
    claimed_ids(stored_world, claim_request(worker, 20))
    stored_world.sql.execute("DELETE FROM job_leases WHERE job_id = %s", (failed,))
    stored_world.set_status(failed, JobStatus.PENDING)
    with stored_world.database.transaction() as tx:
        tx.queue.enqueue([failed])
    assert claimed_ids(stored_world, claim_request(worker)) == [[failed]]


def test_urgent_jobs_come_first_and_a_turn_counts_among_equals(stored_world: World) -> None:
    worker, _ = flooded(stored_world)
    urgent = flood(stored_world, stored_world.dataset(), 3, priority=1)
    assert claimed_ids(stored_world, claim_request(worker, 3)) == [urgent]


def test_run_types_have_clocks_of_their_own(stored_world: World) -> None:
    worker, _ = flooded(stored_world)
    dataset = stored_world.dataset()
    [first] = flood(stored_world, dataset, 1, run_type=RunType.SAMPLING)
    turn = stored_world.sql.execute("SELECT turn FROM job_queue WHERE job_id = %s", (first,)).fetchone()
    assert turn == (1,)
    assert claimed_ids(stored_world, claim_request(worker, 1, [RunType.SAMPLING])) == [[first]]
