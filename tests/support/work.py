"""Jobs and claims for tests of the core: jobs are made and claimed one by one, leases aged, at will."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg

from jobs_service.core.expire_leases import Swept, expire_leases
from jobs_service.core.job_service import JobService
from jobs_service.core.signals import Signals
from jobs_service.core.worker_service import WorkerService
from jobs_service.model.caller import Caller, Level
from jobs_service.model.errors import JobsError
from jobs_service.model.job import Job, JobView, NewJob, RunType
from jobs_service.model.requests import CancelRequest, CreateRequest, CreateResult, GetRequest, RetryRequest
from jobs_service.model.work import (
    Completion,
    Failure,
    FinishRequest,
    FinishResult,
    Heartbeat,
    HeartbeatRequest,
    HeartbeatResult,
    Outcome,
    Release,
)
from tests.support.world import World

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
COMPLETED = Completion(output_summary={"rows": 1}, summary_bytes=10, output_commit_id="c0ffee")
FAILED = Failure(type="ValueError", message="no rows", non_retryable=False, retry_delay=timedelta(0))
RELEASED = Release()

# What ClaimJobs does to one job, whichever is asked for.
_CLAIM = """
WITH taken AS (DELETE FROM job_queue WHERE job_id = %(job_id)s),
     claimed AS (
         UPDATE jobs
            SET status = 'RUNNING', attempt = attempt + 1, claims = claims + 1, version = version + 1,
                lease_token = gen_random_uuid(), progress = NULL,
                start_time = coalesce(start_time, greatest(statement_timestamp(), update_time)),
                update_time = greatest(statement_timestamp(), update_time)
          WHERE job_id = %(job_id)s AND status = 'PENDING'
      RETURNING *),
     leased AS (
         INSERT INTO job_leases (job_id, claim, attempt, lease_token, worker_id, dataset_id, limited,
                                 start_time, lease_expire_time, lease_duration, run_deadline)
              SELECT job_id, claims, attempt, lease_token, %(worker)s, dataset_id, false, update_time,
                     update_time + %(lease)s, %(lease)s,
                     update_time + coalesce(run_timeout, interval '24 h')
                FROM claimed),
     noted AS (
         INSERT INTO job_events (type, job_id, actor_id, actor_soeid, reason, status_before, status_after,
                                 time, run_type)
              SELECT 'CLAIMED', job_id, 1, 'sv00001', %(worker)s, 'PENDING', 'RUNNING', update_time, run_type
                FROM claimed)
SELECT lease_token, attempt FROM claimed
"""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claim: of which job, by which token, in which attempt."""

    job_id: UUID
    token: UUID
    attempt: int


class Workshop:
    """An owner, a data set and a worker in a world, and the services they call."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sql: psycopg.Connection = world.sql
        self.signals = Signals()
        self.jobs = JobService(world.database, self.signals)
        self.workers = WorkerService(world.database, self.signals)
        self.dataset_id = world.dataset()
        self.owner = world.user(grants={self.dataset_id: Level.WRITE})
        self.worker = world.service_user()

    def job(self, *, attempts: int = 3, dataset_id: int | None = None, **columns: Any) -> UUID:
        """Make a job of the owner; columns: of its row, instead of what is there."""
        job = NewJob(
            run_type=RunType.IMPORT,
            dataset_id=dataset_id or self.dataset_id,
            run_parameters={"file_path": "a.csv"},
            payload_bytes=21,
            request_hash=b"0" * 32,
        )
        [made] = self.jobs.create_jobs([CreateRequest(self.owner.caller, job)])
        assert isinstance(made, CreateResult)
        job_id = made.job.job_id
        self.set(job_id, max_attempts=attempts, attempt_budget=attempts, **columns)
        return job_id

    def set(self, job_id: UUID, **columns: Any) -> None:
        """Set columns of a job's row."""
        values = ", ".join(f"{name} = %({name})s" for name in columns)
        self.sql.execute(
            f"UPDATE jobs SET {values} WHERE job_id = %(id)s".encode(), {**columns, "id": job_id}
        )

    def claim(
        self, job_id: UUID, worker: str = "worker-1", lease: timedelta = timedelta(minutes=1)
    ) -> Claimed:
        """Claim this job, whatever its place."""
        parameters = {"job_id": job_id, "worker": worker, "lease": lease}
        row = self.sql.execute(_CLAIM, parameters).fetchone()
        assert row is not None, "the job is not PENDING"
        return Claimed(job_id, row[0], row[1])

    def running(self, **fields: Any) -> Claimed:
        """A job and a claim of it."""
        return self.claim(self.job(**fields))

    def finish(
        self, claim: Claimed, outcome: Outcome, caller: Caller | None = None
    ) -> FinishResult | JobsError:
        """End a claim."""
        request = FinishRequest(caller or self.worker.caller, claim.job_id, claim.token, outcome)
        [result] = self.workers.finish_jobs([request])
        return result

    def heartbeat(self, claim: Claimed, progress: dict[str, Any] | None = None) -> HeartbeatResult:
        """Renew a lease for a minute."""
        beat = Heartbeat(claim.job_id, claim.token, progress)
        request = HeartbeatRequest(self.worker.caller, (beat,), timedelta(minutes=1))
        [results] = self.workers.heartbeat_jobs([request])
        assert not isinstance(results, JobsError), results
        return results[0]

    def cancel(self, job_id: UUID) -> Job | JobsError:
        """Cancel as the owner."""
        [result] = self.jobs.cancel_jobs([CancelRequest(self.owner.caller, job_id, "enough")])
        return result

    def retry(self, job_id: UUID, caller: Caller | None = None) -> Job | JobsError:
        """Retry as the owner, or who else is given."""
        [result] = self.jobs.retry_jobs([RetryRequest(caller or self.owner.caller, job_id)])
        return result

    def get(self, job_id: UUID, view: JobView = JobView.FULL) -> Job:
        """The job as the owner sees it."""
        [found] = self.jobs.get_jobs([GetRequest(self.owner.caller, job_id)], view)
        assert isinstance(found, Job), found
        return found

    def age(self, claim: Claimed, *, timed_out: bool = False) -> None:
        """Let the lease have expired a second ago; it was so short that the sweep waits for nothing."""
        self.sql.execute(
            """UPDATE job_leases SET lease_expire_time = now() - interval '1 s',
                      lease_duration = interval '1 ms',
                      run_deadline = CASE WHEN %s THEN now() - interval '1 s' ELSE run_deadline END
                WHERE job_id = %s AND lease_token = %s""",
            (timed_out, claim.job_id, claim.token),
        )

    def sweep(self, limit: int = 100) -> Swept:
        """Sweep once, as if all had gone well for long."""
        with self.world.database.transaction() as tx:
            swept = expire_leases(tx, since=LONG_AGO, limit=limit)
        self.signals.tell(tx.news)
        return swept

    def expired(self, claim: Claimed) -> None:
        """Let this lease expire and the sweep take the job back, to be claimed again at once."""
        self.age(claim)
        assert self.sweep().taken_back == 1

    def types(self, job_id: UUID) -> list[str]:
        """The types of a job's events, oldest first."""
        return [str(event["type"]) for event in self.world.events(job_id)]

    def cancel_as_0_1_0(self, job_id: UUID) -> None:
        """Cancel as release 0.1.0 does, which knows neither queue nor leases."""
        self.sql.execute(
            """UPDATE jobs SET status = 'CANCELLED', cancelled_by_soeid = 'us00000', version = version + 1,
                      end_time = greatest(statement_timestamp(), update_time),
                      update_time = greatest(statement_timestamp(), update_time)
                WHERE job_id = %s AND end_time IS NULL""",
            (job_id,),
        )

    def check(self, job_id: UUID, *, reported: int = 0) -> None:
        """What holds of every job whatever has happened to it. reported: how often progress was new."""
        row = self.sql.execute(_FACTS, {"job_id": job_id}).fetchone()
        assert row is not None
        status, token, leases, lease_token, queued, attempt, most, claims, attempts, version, changes = row
        assert leases == (status == "RUNNING"), "a lease exactly while it runs"
        assert token == lease_token, "the token of the lease"
        assert not queued or status == "PENDING"
        assert attempt <= most
        assert attempts == claims - leases, "one attempt for each claim that has ended"
        assert version == changes + reported, "one more with every change"


_FACTS = """
SELECT status, lease_token, (SELECT count(*) FROM job_leases l WHERE l.job_id = j.job_id),
       (SELECT l.lease_token FROM job_leases l WHERE l.job_id = j.job_id),
       EXISTS (SELECT FROM job_queue q WHERE q.job_id = j.job_id), attempt, max_attempts, claims,
       (SELECT count(*) FROM job_attempts a WHERE a.job_id = j.job_id), version,
       (SELECT count(*) FROM job_events e WHERE e.job_id = j.job_id)
  FROM jobs j WHERE job_id = %(job_id)s
"""
