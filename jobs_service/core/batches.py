"""Calls about many jobs at once: what they read, and a result for each job."""

from collections.abc import Sequence
from uuid import UUID

from jobs_service.core import permissions
from jobs_service.core.create_jobs import RefusedTogether, create_jobs
from jobs_service.core.payloads import fitting, in_full
from jobs_service.core.permissions import Action
from jobs_service.model.errors import (
    CallerUnknown,
    InvalidRequest,
    JobsError,
    RequestIdConflict,
    RoleRequired,
    UserNotFound,
    Violation,
)
from jobs_service.model.job import Job, JobView
from jobs_service.model.requests import (
    BatchCancelRequest,
    BatchGetRequest,
    CreateRequest,
    CreateResult,
    GetRequest,
    JobFilter,
)
from jobs_service.storage.access_store import StandingQuestion
from jobs_service.storage.database import Transaction
from jobs_service.storage.job_store import FoundJob

OF_CALLER = (CallerUnknown, RoleRequired, UserNotFound)
"""Refusals that are about who calls, and so about the whole call."""


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
    full = iter(in_full(tx, [result for result in shown if isinstance(result, Job)]))
    return [next(full) if isinstance(result, Job) else result for result in shown]


def check_entries(requests: Sequence[CreateRequest]) -> None:
    """Check what the entries of a batch show together. Raises InvalidRequest, RequestIdConflict."""
    request_ids: set[UUID] = set()
    for index, job in enumerate(request.job for request in requests):
        if job.validate_only != requests[0].job.validate_only:
            differs = Violation("validate_only", "must be the same in all entries")
            raise InvalidRequest([differs]).in_entry(index)
        if job.request_id in request_ids:
            raise RequestIdConflict(request_id=job.request_id).in_entry(index)
        if job.request_id is not None:
            request_ids.add(job.request_id)


def create_batch(tx: Transaction, requests: Sequence[CreateRequest]) -> list[CreateResult]:
    """Create all jobs; see JobService.create_batch. What it raises must roll the transaction back."""
    try:
        created = create_jobs(tx, requests, together=True)
    except RefusedTogether as refused:
        refusal = refused.refusal
        raise (refusal if isinstance(refusal, OF_CALLER) else refusal.in_entry(refused.index)) from None
    return [result for result in created if isinstance(result, CreateResult)]


def choose_to_cancel(tx: Transaction, request: BatchCancelRequest, wanted: JobFilter) -> list[UUID]:
    """Return the newest jobs that match and that the caller may cancel, at most one more than the limit.

    Raises CallerUnknown, RoleRequired, UserNotFound (of an on-behalf call, or the owner).
    """
    standing = tx.access.standings([StandingQuestion(request.caller)])[0]
    permissions.require_known(request.caller, standing)
    require_owner(tx, wanted)
    actor = None if permissions.sees_everything(standing) else request.caller.subject_id
    return tx.job_choice.cancellable(actor, wanted, limit=request.limit + 1)


def require_owner(tx: Transaction, wanted: JobFilter) -> None:
    """Check the owner in a filter: one whom nobody knows must never become no filter at all."""
    if wanted.owner_id is None and wanted.owner_soeid is None:
        return
    if wanted.owner_id is None or not tx.access.user_exists(wanted.owner_id):
        raise UserNotFound(
            user_id=None if wanted.owner_soeid else wanted.owner_id, user_soeid=wanted.owner_soeid
        )


def decided(action: Action, request: GetRequest, found: FoundJob) -> Job | JobsError:
    """Return the job, or why the caller may not do this with it."""
    try:
        permissions.require_known(request.caller, found.standing)
        return permissions.require_job(action, request.caller, found.standing, found.job, request.job_id)
    except JobsError as refusal:
        return refusal
