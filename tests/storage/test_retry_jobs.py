"""RetryJob: who may, what it needs, and what of the job goes on."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from jobs_service.model.caller import Caller, Level, Role
from jobs_service.model.errors import (
    DependencyNotFound,
    DependencyNotSatisfiable,
    JobNotFound,
    JobNotRetryable,
    JobPermissionDenied,
    RowLocked,
)
from jobs_service.model.job import Job, JobStatus, RunType
from jobs_service.model.requests import RetryRequest
from jobs_service.model.work import Failure, LeaseState
from jobs_service.upkeep.adopt_jobs import AdoptJobs
from tests.support.postgres import connect
from tests.support.queued import claim_request, claimed
from tests.support.service import wait_until
from tests.support.work import COMPLETED, Claimed, Workshop
from tests.support.world import World

HOPELESS = Failure(type="ValueError", message="never", non_retryable=True, retry_delay=None)


@pytest.fixture
def shop(stored_world: World) -> Workshop:
    return Workshop(stored_world)


def failed(shop: Workshop, **fields: int) -> Claimed:
    """A job that has failed for good, and the claim in which it did."""
    claim = shop.running(**fields)
    shop.heartbeat(claim, {"percent": 50.0})
    shop.finish(claim, HOPELESS)
    return claim


def is_queued(shop: Workshop, job: Job) -> bool:
    found = shop.sql.execute("SELECT ready FROM job_queue WHERE job_id = %s", (job.job_id,)).fetchone()
    return found == (True,)


def test_a_job_that_was_never_claimed_still_waits_for_its_start(shop: Workshop) -> None:
    told: list[RunType] = []
    start = datetime.now(UTC) + timedelta(hours=1)
    job_id = shop.job(available_time=start)
    shop.cancel(job_id)
    shop.signals.ready.subscribe(told.extend)
    job = shop.retry(job_id)
    assert isinstance(job, Job)
    assert (job.status, job.available_time) == (JobStatus.PENDING, start)
    assert (is_queued(shop, job), told) == (False, [])
    shop.sql.execute("UPDATE jobs SET claims = 1 WHERE job_id = %s", (job_id,))
    shop.cancel(job_id)
    again = shop.retry(job_id)
    assert isinstance(again, Job)
    assert again.available_time == again.update_time


def test_a_failed_job_begins_anew_where_its_attempts_were(shop: Workshop) -> None:
    told: list[RunType] = []
    claim = failed(shop, attempts=2)
    before = shop.get(claim.job_id)
    shop.signals.ready.subscribe(told.extend)
    job = shop.retry(claim.job_id)
    assert isinstance(job, Job)
    assert job == shop.get(claim.job_id)
    assert (job.status, job.attempt, job.max_attempts) == (JobStatus.PENDING, 1, 4)
    assert (job.end_time, job.error, job.progress) == (None, None, None)
    assert (job.version, job.start_time) == (before.version + 1, before.start_time)
    assert job.available_time == job.update_time > before.update_time
    assert len(job.attempts) == 1
    assert is_queued(shop, job)
    assert told == [RunType.IMPORT]
    assert shop.types(claim.job_id) == ["CREATED", "CLAIMED", "FAILED", "RETRIED"]
    event = shop.world.events(claim.job_id)[-1]
    assert (event["status_before"], event["status_after"]) == ("FAILED", "PENDING")
    assert (event["actor_soeid"], event["time"]) == (shop.owner.soeid, job.update_time)
    assert shop.claim(claim.job_id).attempt == 2
    shop.check(claim.job_id, reported=1)


@pytest.mark.parametrize("was_running", [False, True])
def test_a_cancelled_job_is_as_it_was_before(shop: Workshop, was_running: bool) -> None:
    job_id = shop.job()
    if was_running:
        shop.claim(job_id)
    shop.cancel(job_id)
    job = shop.retry(job_id)
    assert isinstance(job, Job)
    assert (job.cancelled_by_soeid, job.cancel_reason, job.end_time) == (None, None, None)
    assert (job.attempt, job.max_attempts) == (int(was_running), 6)
    assert is_queued(shop, job)
    shop.check(job_id)


def test_only_what_failed_or_was_cancelled_can_be_retried_and_only_once(shop: Workshop) -> None:
    pending, running = shop.job(), shop.running().job_id
    completed = shop.running()
    shop.finish(completed, COMPLETED)
    for job_id in (pending, running, completed.job_id):
        refused = shop.retry(job_id)
        assert isinstance(refused, JobNotRetryable)
        assert refused.metadata["status"] == shop.get(job_id).status
    job_id = failed(shop).job_id
    first, second = shop.jobs.retry_jobs([RetryRequest(shop.owner.caller, job_id)] * 2)
    third = shop.retry(job_id)
    assert isinstance(first, Job)
    for refused in (second, third):
        assert isinstance(refused, JobNotRetryable)
        assert refused.metadata == {"job_id": str(job_id), "status": "PENDING"}
    assert shop.get(job_id) == first


def test_who_may_write_retries_who_may_read_is_refused_and_others_see_nothing(shop: Workshop) -> None:
    world = shop.world
    writer = world.user(grants={shop.dataset_id: Level.WRITE})
    reader = world.user(grants={shop.dataset_id: Level.READ})
    stranger, program, admin = world.user(), world.user(Role.SERVICE), world.user(Role.ADMIN)
    job_id = failed(shop).job_id
    before = shop.get(job_id)
    for caller in (stranger.caller, program.caller, program.for_user(stranger), admin.for_user(stranger)):
        assert isinstance(shop.retry(job_id, caller), JobNotFound)
    for caller in (reader.caller, program.for_user(reader)):
        assert isinstance(shop.retry(job_id, caller), JobPermissionDenied)
    assert shop.get(job_id) == before
    for caller in (writer.caller, admin.caller, program.for_user(shop.owner), shop.owner.caller):
        assert isinstance(shop.retry(failed(shop).job_id, caller), Job)


def test_a_job_whose_data_set_is_gone_is_not_retried(shop: Workshop) -> None:
    job_id = failed(shop).job_id
    shop.sql.execute("DELETE FROM dataset_permissions WHERE dataset_id = %s", (shop.dataset_id,))
    shop.sql.execute("DELETE FROM datasets WHERE dataset_id = %s", (shop.dataset_id,))
    refused = shop.retry(job_id)
    assert isinstance(refused, JobNotRetryable)
    assert refused.metadata["status"] == "FAILED"


def test_a_retry_and_the_deletion_of_its_data_set_wait_for_each_other(shop: Workshop) -> None:
    job_id = failed(shop).job_id
    with shop.sql.transaction(force_rollback=True):
        shop.sql.execute("DELETE FROM datasets WHERE dataset_id = %s", (shop.dataset_id,))
        assert isinstance(shop.retry(job_id), RowLocked)
    assert isinstance(shop.retry(job_id), Job)


def test_a_job_has_so_many_attempts_in_all_and_no_more(shop: Workshop) -> None:
    job_id = failed(shop).job_id
    shop.set(job_id, attempt=9_998, max_attempts=9_999, attempt_budget=50)
    last = shop.retry(job_id)
    assert isinstance(last, Job)
    assert last.max_attempts == 10_000
    shop.set(job_id, attempt=9_999)
    shop.finish(shop.claim(job_id), HOPELESS)
    assert isinstance(shop.retry(job_id), JobNotRetryable)


def depends(shop: Workshop, job: Claimed, *others: Claimed) -> None:
    """Let a job that has ended depend on others."""
    for other in others:
        shop.sql.execute("INSERT INTO job_dependencies VALUES (%s, %s)", (job.job_id, other.job_id))
    shop.set(job.job_id, dependencies=len(others))


def test_a_retried_job_waits_for_the_dependencies_that_are_not_completed(shop: Workshop) -> None:
    job, done, running = failed(shop), shop.running(), shop.running()
    shop.finish(done, COMPLETED)
    depends(shop, job, done, running)
    retried = shop.retry(job.job_id)
    assert isinstance(retried, Job)
    assert not is_queued(shop, retried)
    shop.finish(running, COMPLETED)
    assert is_queued(shop, retried)


def test_a_retried_job_whose_dependencies_are_completed_is_ready(shop: Workshop) -> None:
    job, done = failed(shop), shop.running()
    shop.finish(done, COMPLETED)
    depends(shop, job, done)
    retried = shop.retry(job.job_id)
    assert isinstance(retried, Job)
    assert is_queued(shop, retried)


def test_a_dependency_that_failed_refuses_the_retry_unless_the_job_keeps_waiting(shop: Workshop) -> None:
    job, dependency = failed(shop), failed(shop)
    depends(shop, job, dependency)
    refused = shop.retry(job.job_id)
    assert isinstance(refused, DependencyNotSatisfiable)
    assert refused.metadata == {"job_id": str(dependency.job_id), "status": "FAILED"}
    shop.set(job.job_id, keep_waiting=True)
    retried = shop.retry(job.job_id)
    assert isinstance(retried, Job)
    assert not is_queued(shop, retried)
    shop.retry(dependency.job_id)
    shop.finish(shop.claim(dependency.job_id), COMPLETED)
    assert is_queued(shop, retried)


def test_a_dependency_that_is_gone_refuses_the_retry(shop: Workshop) -> None:
    job, dependency = failed(shop), failed(shop)
    depends(shop, job, dependency)
    shop.sql.execute("DELETE FROM jobs WHERE job_id = %s", (dependency.job_id,))
    refused = shop.retry(job.job_id)
    assert isinstance(refused, DependencyNotFound)
    assert refused.metadata == {"job_id": str(dependency.job_id)}


def test_one_job_that_is_held_keeps_no_other_from_being_retried(shop: Workshop) -> None:
    held, free, needing, needed = failed(shop), failed(shop), failed(shop), shop.running()
    depends(shop, needing, needed)
    asked = [RetryRequest(shop.owner.caller, one.job_id) for one in (held, free, needing)]
    with shop.world.database.transaction() as tx:
        tx.jobs.lock([held.job_id, needed.job_id], wait=True)
        results = shop.jobs.retry_jobs(asked)
    assert [type(result) for result in results] == [RowLocked, Job, RowLocked]
    assert shop.heartbeat(held).state is LeaseState.LOST
    assert isinstance(shop.retry(held.job_id, Caller(shop.owner.soeid, shop.owner.user_id)), Job)


@pytest.mark.parametrize("ended_by", [Workshop.cancel, Workshop.cancel_as_0_1_0])
def test_a_job_that_release_0_1_0_made_and_that_ended_without_a_turn_is_retried(
    shop: Workshop, ended_by: Callable[[Workshop, UUID], object]
) -> None:
    job_id = shop.job(attempts=1, turn=None)
    shop.sql.execute("DELETE FROM job_queue WHERE job_id = %s", (job_id,))
    ended_by(shop, job_id)
    job = shop.retry(job_id)
    assert isinstance(job, Job)
    assert job.status is JobStatus.PENDING
    assert is_queued(shop, job)
    AdoptJobs(shop.world.database, shop.signals).run_once()
    [[claim]] = claimed(shop.world, claim_request(shop.worker))
    assert claim.job.job_id == job_id


def test_a_retry_takes_its_locks_in_the_order_of_batches_whatever_depends_on_what(shop: Workshop) -> None:
    first, last = sorted([shop.job(), shop.job()])
    shop.set(last, dependencies=1)
    shop.sql.execute("INSERT INTO job_dependencies VALUES (%s, %s)", (last, first))
    shop.cancel(last)
    lock = "SELECT FROM jobs WHERE job_id = %s FOR UPDATE NOWAIT"
    waits = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with ThreadPoolExecutor(1) as thread:
        with connect(shop.world.database_url) as ending, ending.transaction():
            ending.execute(lock, (first,))
            retrying = thread.submit(shop.retry, last)
            wait_until(lambda: shop.sql.execute(waits).rowcount, 10, "the retry that waits")
            ending.execute(lock, (last,))
        assert isinstance(retrying.result(10), Job)
    assert shop.get(last).waiting_on == (first,)
