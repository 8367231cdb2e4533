"""Jobs that wait for others, made, ended and looked at below the RPCs."""

import hashlib
import uuid
from collections.abc import Callable, Collection, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import event

from jobs_service.core.dependants import tell
from jobs_service.core.job_service import JobService
from jobs_service.core.signals import Signals
from jobs_service.model.caller import Level
from jobs_service.model.errors import JobsError
from jobs_service.model.job import Job, JobStatus, JobView, NewJob, RunType
from jobs_service.model.requests import CancelRequest, CreateRequest, CreateResult, GetRequest
from jobs_service.storage.database import Transaction
from jobs_service.upkeep.tell_dependants import TellDependants
from tests.support.world import User, World


class Graph:
    """Makes jobs of one user that wait for each other, and ends them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dataset_id = world.dataset()
        self.owner = world.user(grants={self.dataset_id: Level.WRITE})
        self.service = JobService(world.database)
        self.duty = TellDependants(world.database, Signals())

    def request(self, *depends_on: UUID, caller: User | None = None, **fields: Any) -> CreateRequest:
        """Ask for a job that waits for these."""
        indexes = fields.pop("indexes", ())
        fields.setdefault("request_hash", hashlib.sha256(repr((depends_on, indexes)).encode()).digest())
        job = NewJob(
            dataset_id=self.dataset_id,
            run_type=RunType.IMPORT,
            run_parameters={"file_path": "a"},
            payload_bytes=17,
            depends_on=depends_on,
            **fields,
        )
        return CreateRequest((caller or self.owner).caller, job, None, indexes)

    def ask(self, *depends_on: UUID, **fields: Any) -> CreateResult | JobsError:
        """Ask for one job."""
        [result] = self.service.create_jobs([self.request(*depends_on, **fields)])
        return result

    def new(self, *depends_on: UUID, **fields: Any) -> UUID:
        """Make a job that waits for these."""
        result = self.ask(*depends_on, **fields)
        assert isinstance(result, CreateResult), result
        return result.job.job_id

    def many(self, count: int, *depends_on: UUID) -> list[UUID]:
        """Make many at once."""
        results = [
            result
            for start in range(0, count, 500)
            for result in self.service.create_jobs([self.request(*depends_on)] * min(500, count - start))
        ]
        return [result.job.job_id for result in results if isinstance(result, CreateResult)]

    def end(
        self,
        *job_ids: UUID,
        status: JobStatus = JobStatus.COMPLETED,
        between: Callable[[], object] = lambda: None,
    ) -> None:
        """End these jobs and tell who waits for them; between: called while the jobs are held."""
        with self.world.database.transaction() as tx:
            write_status(tx, job_ids, status)
            between()
            told = tell(tx, job_ids)
            tx.places.fill(told.limited)

    def cancel(self, job_id: UUID) -> None:
        """Cancel a job as its owner."""
        [result] = self.service.cancel_jobs([CancelRequest(self.owner.caller, job_id, "enough")])
        assert isinstance(result, Job), result

    def job(self, job_id: UUID, view: JobView = JobView.BASIC) -> Job:
        """The job as its owner sees it."""
        [job] = self.service.get_jobs([GetRequest(self.owner.caller, job_id)], view)
        assert isinstance(job, Job), job
        return job

    def work_off(self) -> int:
        """Run the duty until it asks for no more; returns how often."""
        for times in range(1, 10_000):
            if not self.duty.run_once():
                return times
        raise AssertionError("the duty never ends")

    def queued(self, job_ids: Collection[UUID]) -> set[UUID]:
        """Those of these jobs that can be claimed, or will be when their time has come."""
        found = self.world.sql.execute(
            "SELECT job_id FROM job_queue WHERE job_id = ANY(%s)", (list(job_ids),)
        )
        return {row[0] for row in found}

    def statuses(self, job_ids: Collection[UUID]) -> dict[str, int]:
        """How many of these jobs are in each status."""
        found = self.world.sql.execute(
            "SELECT status, count(*) FROM jobs WHERE job_id = ANY(%s) GROUP BY 1", (list(job_ids),)
        )
        return {row[0]: row[1] for row in found}

    def noted(self) -> dict[UUID, UUID | None]:
        """The ended jobs whose dependants are still to be told."""
        found = self.world.sql.execute("SELECT job_id, after_job_id FROM ended_dependencies")
        return {row[0]: row[1] for row in found}

    def dependants_by_hand(self, count: int, depends_on: UUID) -> list[UUID]:
        """Very many dependants of one job, as CreateJob leaves them, made within the server."""
        made = self.world.sql.execute(
            """WITH made AS (
                 INSERT INTO jobs (job_id, run_type, dataset_id, owner_id, creator_id, priority,
                                   payload_bytes, run_parameters, turn, dependencies)
                      SELECT gen_random_uuid(), 'IMPORT', %s, %s, %s, 0, 2, '{}', n, 1
                        FROM generate_series(1, %s) n
                   RETURNING job_id),
                    waiting AS (INSERT INTO job_dependencies SELECT job_id, %s FROM made)
               SELECT job_id FROM made""",
            (self.dataset_id, self.owner.user_id, self.owner.user_id, count, depends_on),
        )
        return [row[0] for row in made]


def write_status(tx: Transaction, job_ids: Sequence[UUID], status: JobStatus) -> None:
    """End jobs, or have them tried again, in this transaction: what a worker's calls do to the row."""
    ended = status is not JobStatus.PENDING
    tx.jobs._connection.exec_driver_sql(
        """UPDATE jobs SET status = %(status)s, version = version + 1, update_time = statement_timestamp(),
                  end_time = CASE WHEN %(ended)s THEN statement_timestamp() END,
                  error_type = CASE WHEN %(status)s = 'FAILED' THEN 'ValueError' END,
                  cancelled_by_soeid = CASE WHEN %(status)s = 'CANCELLED' THEN '' END
            WHERE job_id = ANY(%(job_ids)s)""",
        {"status": status.value, "ended": ended, "job_ids": sorted(job_ids)},
    )
    tx.queue.remove(job_ids)
    if not ended:
        tx.queue.enqueue(job_ids)


def statements(world: World, work: Callable[[], object]) -> list[str]:
    """Which statements the work sends."""
    found: list[str] = []

    def note(_conn: Any, _cursor: Any, sql: str, *_: Any) -> None:
        found.append(sql)

    event.listen(world.database.engine, "before_cursor_execute", note)
    try:
        work()
    finally:
        event.remove(world.database.engine, "before_cursor_execute", note)
    return found


def some_id() -> UUID:
    """The id of no job."""
    return uuid.uuid4()
