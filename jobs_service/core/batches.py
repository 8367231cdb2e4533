"""Calls about many jobs at once: what they read, and a result for each job."""

from jobs_service.core import permissions
from jobs_service.core.payloads import fitting, with_payloads
from jobs_service.core.permissions import Action
from jobs_service.model.errors import JobsError
from jobs_service.model.job import Job, JobView
from jobs_service.model.requests import BatchGetRequest, GetRequest
from jobs_service.storage.database import Transaction
from jobs_service.storage.job_store import FoundJob


def get_batch(tx: Transaction, request: BatchGetRequest) -> list[Job | JobsError]:
    """Return the jobs asked for; see JobService.get_batch."""
    asked = [GetRequest(request.caller, job_id) for job_id in request.job_ids]
    found = tx.jobs.find(asked, JobView.BASIC)
    permissions.require_known(request.caller, found[0].standing)
    results = [decided(Action.SHOW, one, answer) for one, answer in zip(asked, found, strict=True)]
    if request.view is not JobView.FULL:
        return results
    sizes = [result.payload_bytes if isinstance(result, Job) else 0 for result in results]
    shown = results[: fitting(sizes)]
    full = iter(with_payloads(tx, [result for result in shown if isinstance(result, Job)]))
    return [next(full) if isinstance(result, Job) else result for result in shown]


def decided(action: Action, request: GetRequest, found: FoundJob) -> Job | JobsError:
    """Return the job, or why the caller may not do this with it."""
    try:
        permissions.require_known(request.caller, found.standing)
        return permissions.require_job(action, request.caller, found.standing, found.job, request.job_id)
    except JobsError as refusal:
        return refusal
