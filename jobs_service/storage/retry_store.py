"""Jobs made PENDING again."""

from collections.abc import Collection
from uuid import UUID

from sqlalchemy import Connection, Uuid, bindparam, case, func, select, update
from sqlalchemy.dialects.postgresql import ARRAY

from jobs_service.model.job import JobStatus
from jobs_service.model.retry import MAX_TOTAL_ATTEMPTS
from jobs_service.storage.tables import jobs

_job_ids = bindparam("job_ids", type_=ARRAY(Uuid))
_KEEP_WAITING = select(jobs.c.job_id).where(jobs.c.job_id == func.any(_job_ids), jobs.c.keep_waiting)
# As in job_store: not the start of the transaction, and never earlier than what is there.
_moment = func.greatest(func.statement_timestamp(), jobs.c.update_time)
_RETRY = (
    update(jobs)
    .where(
        jobs.c.job_id == func.any(_job_ids),
        jobs.c.end_time.is_not(None),
        jobs.c.status != JobStatus.COMPLETED.value,
    )
    .values(
        status=JobStatus.PENDING.value,
        max_attempts=func.least(jobs.c.max_attempts + jobs.c.attempt_budget, MAX_TOTAL_ATTEMPTS),
        version=jobs.c.version + 1,
        update_time=_moment,
        # One that was never claimed may be waiting for its start_delay.
        available_time=case(
            (jobs.c.claims == 0, func.greatest(jobs.c.available_time, _moment)), else_=_moment
        ),
        releases=0,
        lease_token=None,
        end_time=None,
        progress=None,
        error_type=None,
        error_message=None,
        error_retryable=None,
        cancelled_by_soeid=None,
        cancel_reason=None,
    )
)


class RetryStore:
    """The jobs table, for RetryJob."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def keep_waiting(self, job_ids: Collection[UUID]) -> set[UUID]:
        """Return those of these jobs that wait on for a job that has failed."""
        return set(self._connection.execute(_KEEP_WAITING, {"job_ids": sorted(job_ids)}).scalars())

    def retry(self, job_ids: Collection[UUID]) -> None:
        """Make these jobs, which are locked and FAILED or CANCELLED, PENDING as they were before."""
        self._connection.execute(_RETRY, {"job_ids": sorted(job_ids)})
