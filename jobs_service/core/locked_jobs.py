"""Who may do what to which jobs, before they are locked, and the jobs under their locks."""

from collections.abc import Sequence

from jobs_service.core.batches import decided
from jobs_service.core.permissions import Action
from jobs_service.model.errors import JobNotFound, JobsError, RowLocked
from jobs_service.model.job import Job, JobView
from jobs_service.model.requests import GetRequest
from jobs_service.storage.database import Transaction
from jobs_service.storage.job_store import LockedJobs


def allowed(tx: Transaction, action: Action, asked: Sequence[GetRequest]) -> list[Job | JobsError]:
    """Decide who may before anything is locked: nobody holds, or waits for, what is not theirs to change."""
    found = tx.jobs.find(asked, JobView.BASIC)
    return [decided(action, request, answer) for request, answer in zip(asked, found, strict=True)]


def locked_job(allowance: Job | JobsError, found: LockedJobs) -> Job:
    """The job as it is under its lock. Raises the refusal, RowLocked, JobNotFound."""
    if isinstance(allowance, JobsError):
        raise allowance
    if allowance.job_id not in found.jobs:
        raise JobNotFound(job_id=allowance.job_id)
    if allowance.job_id not in found.locked:
        raise RowLocked
    return found.jobs[allowance.job_id]
