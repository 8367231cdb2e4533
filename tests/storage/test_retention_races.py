"""What meets a job while it is being deleted: its row's lock decides."""

import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest
from prometheus_client import CollectorRegistry

from jobs_service.core.job_service import JobService
from jobs_service.model.caller import Level
from jobs_service.model.job import JobStatus, NewJob, RunType
from jobs_service.model.requests import CreateRequest, CreateResult
from jobs_service.storage.job_counts import READER
from jobs_service.storage.retention import BEGINNING, JOBS
from jobs_service.telemetry.job_gauges import JobGauges
from jobs_service.telemetry.metrics import Metrics
from jobs_service.upkeep.count_jobs import CountJobs
from jobs_service.upkeep.loop import Duty
from jobs_service.upkeep.purge_history import PurgeHistory
from jobs_service.upkeep.purge_jobs import PurgeJobs
from tests.support.old_jobs import ENDS, OLD, WEEK, Old
from tests.support.postgres import connect, open_database
from tests.support.service import wait_until
from tests.support.world import User, World


@pytest.fixture
def old(stored_world: World) -> Old:
    return Old(stored_world)


_RETRY = """
UPDATE jobs SET status = 'PENDING', end_time = NULL, error_type = NULL, version = version + 1
 WHERE job_id = %s AND status = 'FAILED' RETURNING job_id"""
_WAITING = """
SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"""


def wait_for_waiting(old: Old, number: int = 1) -> None:
    def waiting() -> bool:
        return old.sql.execute(_WAITING).fetchone() == (number,)

    wait_until(waiting, 10, "somebody waits for a row")


def test_a_job_that_is_being_retried_stays_and_keeps_no_purge_waiting(old: Old) -> None:
    [job_id] = old.ended(status=JobStatus.FAILED)
    old.count()
    with connect(old.world.database_url) as retrying, retrying.transaction():
        assert retrying.execute(_RETRY, (job_id,)).rowcount == 1
        old.pass_once()
    old.pass_once()
    assert old.there() == {job_id}


def test_a_retry_of_a_job_that_is_being_deleted_finds_none(old: Old) -> None:
    [job_id] = old.ended(status=JobStatus.FAILED)
    old.count()

    def retry() -> int:
        with connect(old.world.database_url) as sql:
            return sql.execute(_RETRY, (job_id,)).rowcount

    with ThreadPoolExecutor(1) as thread:
        with old.world.database.transaction() as tx:
            assert old.chosen(tx) == [job_id]
            retrying = thread.submit(retry)
            wait_for_waiting(old)
            tx.retention.delete([job_id])
        assert retrying.result(10) == 0
    assert old.there() == set()


def test_a_job_that_was_retried_since_the_purge_saw_it_stays(old: Old) -> None:
    [job_id, again] = old.ended(2, JobStatus.FAILED)
    old.count()
    with old.world.database.transaction() as tx:
        place = tx.event_readers.lock(READER)
        assert place is not None
        aged = [job.job_id for job in tx.retention.aged(WEEK, BEGINNING)]
        for one in aged:
            old.sql.execute(_RETRY, (one,))
        old.end([again], JobStatus.FAILED, "0")
        locked = tx.retention.lock(aged)
        assert tx.retention.free(locked, WEEK, place) == {}
    assert old.there() == {job_id, again}


def test_a_job_that_a_new_one_is_about_to_depend_on_stays(old: Old) -> None:
    [dependency] = old.ended()
    old.count()
    with connect(old.world.database_url) as creating, creating.transaction():
        creating.execute("SELECT FROM jobs WHERE job_id = %s FOR SHARE", (dependency,))
        old.pass_once()
        [dependant] = old.jobs(1)
        creating.execute("INSERT INTO job_dependencies VALUES (%s, %s)", (dependant, dependency))
    old.pass_once()
    assert old.there() == {dependency, dependant}


def test_a_dependency_that_came_while_the_purge_looked_is_seen(old: Old) -> None:
    [dependency], [dependant] = old.ended(), old.jobs(1)
    old.count()
    with old.world.database.transaction() as tx:
        place = tx.event_readers.lock(READER)
        assert place is not None
        aged = [job.job_id for job in tx.retention.aged(WEEK, BEGINNING)]
        # Whoever creates locks FOR SHARE, which leaves no new version of the row behind.
        with old.sql.transaction():
            old.sql.execute("SELECT FROM jobs WHERE job_id = %s FOR SHARE", (dependency,))
            old.depend(dependant, dependency)
        assert tx.retention.lock(aged) == [dependency]
        assert tx.retention.free([dependency], WEEK, place) == {}


def test_a_new_job_can_not_depend_on_one_that_is_being_deleted(old: Old) -> None:
    [dependency] = old.ended()
    old.count()

    def found() -> int:
        with connect(old.world.database_url) as sql:
            return sql.execute("SELECT FROM jobs WHERE job_id = %s FOR SHARE", (dependency,)).rowcount

    with ThreadPoolExecutor(1) as thread:
        with old.world.database.transaction() as tx:
            tx.retention.delete(old.chosen(tx))
            looking = thread.submit(found)
            wait_for_waiting(old)
        assert looking.result(10) == 0


def repeated(user: User, dataset: int, request_id: UUID) -> CreateRequest:
    """The same request each time."""
    job = NewJob(
        dataset_id=dataset,
        run_type=RunType.IMPORT,
        run_parameters={"file_path": "a"},
        payload_bytes=2,
        request_hash=b"0" * 32,
        request_id=request_id,
    )
    return CreateRequest(user.caller, job)


def test_a_request_repeated_while_its_job_is_being_deleted_makes_a_new_one(old: Old) -> None:
    service, dataset = JobService(old.world.database), old.world.dataset()
    request = repeated(old.world.user(grants={dataset: Level.WRITE}), dataset, uuid4())

    def create() -> UUID:
        [result] = service.create_jobs([request])
        assert isinstance(result, CreateResult)
        assert not result.replayed
        return result.job.job_id

    first = create()
    old.end([first], JobStatus.COMPLETED, OLD)
    old.count()
    with ThreadPoolExecutor(1) as thread:
        with old.world.database.transaction() as tx:
            tx.retention.delete(old.chosen(tx))
            repeating = thread.submit(create)
            wait_for_waiting(old)
        second = repeating.result(10)
    assert old.there() == {second}


def test_replicas_that_purge_at_once_delete_each_job_once_and_keep_the_counts_right(old: Old) -> None:
    kept = old.ended(100, age="9 days")
    old.sql.execute("INSERT INTO ended_dependencies (job_id) SELECT unnest(%s)", (kept,))
    for status in ENDS:
        old.ended(JOBS, status)
    pending, done = old.jobs(50), threading.Event()

    def replica() -> float:
        database = open_database(old.world.database_url, pool_size=2)
        metrics = Metrics(CollectorRegistry())
        duties: list[Duty] = [
            PurgeJobs(database, WEEK, metrics.work),
            PurgeHistory(database, WEEK, metrics.work),
            CountJobs(database, JobGauges()),
        ]
        while not done.is_set():
            for duty in duties:
                duty.run_once()
        database.close()
        return metrics.registry.get_sample_value("jobs_purged_jobs_total") or 0.0

    with ThreadPoolExecutor(3) as threads:
        replicas = [threads.submit(replica) for _ in range(3)]
        try:
            wait_until(lambda: len(old.there()) == 150, 60, "all old jobs are gone")
        finally:
            done.set()
        deleted = [one.result(30) for one in replicas]
    assert sum(deleted) == 3 * JOBS
    assert old.there() == {*kept, *pending}
    old.count()
    old.require_right_counts()
