"""Jobs put into the queue as creates do, what the queue then holds, and workers who claim."""

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from jobs_service.core.signals import Signals
from jobs_service.core.worker_service import WorkerService
from jobs_service.model.errors import JobsError
from jobs_service.model.job import NewJob, RunType
from jobs_service.model.work import Claim, ClaimRequest, ClaimResult
from jobs_service.storage.job_insert import InsertedJob, JobInsert
from tests.support.world import User, World


def new_insert(
    dataset_id: int, run_type: RunType = RunType.IMPORT, *, waits: bool = False, **asked: Any
) -> JobInsert:
    """A row to be; asked: further fields of the NewJob."""
    values: dict[str, Any] = {"run_parameters": {"file_path": "a"}, "payload_bytes": 17, **asked}
    job = NewJob(dataset_id=dataset_id, run_type=run_type, request_hash=b"0" * 32, **values)
    return JobInsert(uuid7(), 1, 1, job, waits=waits)


def put(world: World, inserts: Sequence[JobInsert]) -> Mapping[UUID, InsertedJob]:
    """Insert them in one transaction, the places of their data sets filled."""
    with world.database.transaction() as tx:
        inserted = tx.jobs.insert(inserts)
        held = {one.job.dataset_id for one in inserts if one.job_id in inserted and inserted[one.job_id].held}
        tx.places.fill(held)
    return inserted


def flood(world: World, dataset_id: int, jobs: int, **asked: Any) -> list[UUID]:
    """Insert so many equal jobs of one data set; returns their ids in the order of their turns."""
    inserts = [new_insert(dataset_id, **asked) for _ in range(jobs)]
    put(world, inserts)
    return [one.job_id for one in inserts]


def limit(world: World, dataset_id: int, max_running: int | None) -> None:
    """Set or remove the limit of a data set, as the command line does."""
    with world.database.transaction() as tx:
        connection = tx.queue._connection
        connection.exec_driver_sql(f"DELETE FROM dataset_limits WHERE dataset_id = {dataset_id}")
        if max_running is not None:
            connection.exec_driver_sql(f"INSERT INTO dataset_limits VALUES ({dataset_id}, {max_running})")
        tx.places.relabel(dataset_id)
        tx.places.fill([dataset_id])


def queue(world: World) -> dict[UUID, dict[str, Any]]:
    """The rows of the queue, by job id."""
    cursor = world.sql.execute("SELECT * FROM job_queue ORDER BY neg_priority, turn, job_id")
    names = [column.name for column in cursor.description or ()]
    return {row[0]: dict(zip(names, row, strict=True)) for row in cursor}


def claim_request(
    user: User,
    max_jobs: int = 1,
    run_types: Collection[RunType] = (RunType.IMPORT,),
    *,
    worker_id: str = "w1",
    lease_duration: timedelta = timedelta(seconds=60),
) -> ClaimRequest:
    """What a worker asks for."""
    return ClaimRequest(
        caller=user.caller,
        worker_id=worker_id,
        run_types=frozenset(run_types),
        max_jobs=max_jobs,
        lease_duration=lease_duration,
    )


def claimed(world: World, *requests: ClaimRequest, signals: Signals | None = None) -> list[list[Claim]]:
    """Let these workers claim at once; what each got. A refusal is raised."""
    results = WorkerService(world.database, signals or Signals()).claim_jobs(requests)
    for result in results:
        if isinstance(result, JobsError):
            raise result
    return [result.claims for result in results if isinstance(result, ClaimResult)]


def claimed_ids(world: World, *requests: ClaimRequest) -> list[list[UUID]]:
    """The ids of the jobs that each got."""
    return [[claim.job.job_id for claim in claims] for claims in claimed(world, *requests)]
