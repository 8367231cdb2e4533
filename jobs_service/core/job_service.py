"""The operations on jobs. Each is one transaction: its permission check, its change, its history.

Operations are plural where many calls come at once: a list of requests in, a list of the same length
out, in the same order, where a refusal is a value (a JobsError) that spoils none of the others.
What a request shows by itself has been checked before, see core.validation.
"""

from collections.abc import Sequence
from uuid import UUID

from jobs_service.core import permissions
from jobs_service.core.batches import (
    OF_CALLER,
    choose_to_cancel,
    create_batch,
    decided,
    get_batch,
    require_owner,
)
from jobs_service.core.cancel_jobs import Cancellation, cancel_locked
from jobs_service.core.create_jobs import create_jobs
from jobs_service.core.locked_jobs import allowed, locked_job
from jobs_service.core.payloads import fitting, in_full
from jobs_service.core.permissions import Action
from jobs_service.core.retry_jobs import retry_jobs
from jobs_service.core.signals import Signals
from jobs_service.model.errors import JobNotCancellable, JobsError, RowLocked
from jobs_service.model.job import Job, JobStatus, JobView
from jobs_service.model.requests import (
    BatchCancelRequest,
    BatchCancelResult,
    BatchGetRequest,
    CancelRequest,
    CreateRequest,
    CreateResult,
    GetRequest,
    ListRequest,
    Page,
    RetryRequest,
)
from jobs_service.model.states import may_become
from jobs_service.storage.access_store import StandingQuestion
from jobs_service.storage.database import Database
from jobs_service.storage.job_list import TOTAL_CAP


class JobService:
    """Creates, shows, lists and cancels jobs.

    Every operation raises DatabaseUnavailable (TransactionRolledBack where it may be rerun as it is),
    beside what its own docstring says.
    """

    def __init__(self, database: Database, signals: Signals | None = None) -> None:
        self._database = database
        self._signals = signals or Signals()

    def create_jobs(self, requests: Sequence[CreateRequest]) -> list[CreateResult | JobsError]:
        """Create the jobs asked for, or find those that the same requests have made before.

        Refusals: CallerUnknown, RoleRequired, UserNotFound, DatasetPermissionDenied,
        DatasetNotFound, RequestIdConflict, DependencyNotFound, DependencyNotSatisfiable, RowLocked where
        another transaction holds a job that was to be waited for.
        """
        try:
            return self._create_jobs(requests, wait=True)
        except RowLocked:
            if not any(request.job.depends_on for request in requests):
                raise
            # As in cancel_jobs: who waits for a job that is held must not hold up the others.
            return self._create_jobs(requests, wait=False)

    def _create_jobs(
        self, requests: Sequence[CreateRequest], *, wait: bool
    ) -> list[CreateResult | JobsError]:
        with self._database.transaction() as tx:
            results = create_jobs(tx, requests, wait=wait)
        self._signals.tell(tx.news)
        return results

    def create_batch(self, requests: Sequence[CreateRequest]) -> list[CreateResult]:
        """Create all of the jobs or none, in their order. The requests are one caller's, see check_entries.

        Raises what create_jobs refuses the first of them with; the metadata name its index.
        """
        with self._database.transaction() as tx:
            results = create_batch(tx, requests)
        self._signals.tell(tx.news)
        return results

    def get_jobs(self, requests: Sequence[GetRequest], view: JobView) -> list[Job | JobsError]:
        """Return the jobs asked for. Refusals: CallerUnknown, RoleRequired, UserNotFound, JobNotFound."""
        with self._database.one_statement() as tx:
            found = tx.jobs.find(requests, view)
        return [
            decided(Action.SHOW, request, answer) for request, answer in zip(requests, found, strict=True)
        ]

    def get_batch(self, request: BatchGetRequest, *, seconds: float) -> list[Job | JobsError]:
        """Return the jobs asked for in order, or as many of the first as an answer has room for.

        seconds: what one statement may take, else DeadlineExceeded. Refusals: JobNotFound.
        Raises CallerUnknown, RoleRequired, UserNotFound.
        """
        with self._database.snapshot(seconds=seconds) as tx:
            return get_batch(tx, request)

    def list_jobs(self, request: ListRequest, *, seconds: float) -> Page:
        """Return a page of the jobs that the caller may see, and their number if asked for.

        seconds: what one statement may take, else DeadlineExceeded. A page is shorter than asked
        where the view is FULL and more than payloads.PAGE_BYTES would be read.
        Raises CallerUnknown, RoleRequired, UserNotFound (of an on-behalf call, or the owner).
        """
        wanted = request.filter
        with self._database.snapshot(seconds=seconds) as tx:
            standing = tx.access.standings([StandingQuestion(request.caller)])[0]
            permissions.require_known(request.caller, standing)
            require_owner(tx, wanted)
            viewer = None if permissions.sees_everything(standing) else request.caller.subject_id
            found = tx.job_list.newest(
                viewer, wanted, cursor=request.cursor, skip=request.skip, limit=request.page_size + 1
            )
            jobs = found[: request.page_size]
            if request.view is JobView.FULL:
                jobs = in_full(tx, jobs[: fitting([job.payload_bytes for job in jobs])])
            total = tx.job_list.total(viewer, wanted) if request.include_total else None
        return Page(
            jobs=jobs,
            more=len(jobs) < len(found),
            total=total,
            total_capped=total == TOTAL_CAP,
        )

    def cancel_batch(self, request: BatchCancelRequest, *, seconds: float) -> BatchCancelResult:
        """Cancel the jobs asked for, or the newest that match and that the caller may cancel.

        Each for itself: refusals as of cancel_jobs. seconds: what to choose them may take, else
        DeadlineExceeded. Raises CallerUnknown, RoleRequired, UserNotFound (the owner in the filter, too).
        """
        job_ids: Sequence[UUID] = request.job_ids
        if request.filter is not None:
            # A transaction of its own: what is found is locked, and decided on, anew.
            with self._database.snapshot(seconds=seconds) as tx:
                job_ids = choose_to_cancel(tx, request, request.filter)
        chosen = job_ids[: request.limit]
        wanted = [CancelRequest(request.caller, job_id, request.reason) for job_id in chosen]
        results = self.cancel_jobs(wanted, JobView.BASIC) if wanted else []
        for result in results:
            if isinstance(result, OF_CALLER):
                raise result
        return BatchCancelResult(list(zip(chosen, results, strict=True)), more=len(chosen) < len(job_ids))

    def cancel_jobs(
        self, requests: Sequence[CancelRequest], view: JobView = JobView.FULL
    ) -> list[Job | JobsError]:
        """Cancel the jobs asked for: of several requests for one job the first wins.

        Refusals: CallerUnknown, RoleRequired, UserNotFound, JobNotFound, JobPermissionDenied,
        JobNotCancellable, RowLocked where another transaction holds the job for too long.
        """
        try:
            return self._cancel_jobs(requests, view, wait=True)
        except RowLocked:
            # One job that is held must not keep the others waiting for the same lock again.
            return self._cancel_jobs(requests, view, wait=False)

    def _cancel_jobs(
        self, requests: Sequence[CancelRequest], view: JobView, *, wait: bool
    ) -> list[Job | JobsError]:
        with self._database.transaction() as tx:
            permitted = allowed(tx, Action.CANCEL, [GetRequest(one.caller, one.job_id) for one in requests])
            found = tx.jobs.lock([job.job_id for job in permitted if isinstance(job, Job)], view, wait=wait)
            winners: dict[UUID, Cancellation] = {}
            results: list[Job | JobsError] = []
            for request, allowance in zip(requests, permitted, strict=True):
                try:
                    job = locked_job(allowance, found)
                    _require_cancellable(job, winners.get(job.job_id))
                    winners[job.job_id] = Cancellation(job, request.caller, request.reason)
                    results.append(job)
                except JobsError as refusal:
                    results.append(refusal)
            changed = cancel_locked(tx, list(winners.values()), wait=wait)
            cancelled = {job.job_id: job for job in changed}
        self._signals.tell(tx.news)
        return [cancelled[result.job_id] if isinstance(result, Job) else result for result in results]

    def retry_jobs(self, requests: Sequence[RetryRequest]) -> list[Job | JobsError]:
        """Make jobs that are FAILED or CANCELLED PENDING again: of several requests for one the first wins.

        Refusals: CallerUnknown, RoleRequired, UserNotFound, JobNotFound, JobPermissionDenied,
        JobNotRetryable, DependencyNotFound, DependencyNotSatisfiable, RowLocked where another
        transaction holds the job, or what it needs, for too long.
        """
        try:
            return self._retry_jobs(requests, wait=True)
        except RowLocked:
            return self._retry_jobs(requests, wait=False)

    def _retry_jobs(self, requests: Sequence[RetryRequest], *, wait: bool) -> list[Job | JobsError]:
        with self._database.transaction() as tx:
            results = retry_jobs(tx, requests, wait=wait)
        self._signals.tell(tx.news)
        return results


def _require_cancellable(job: Job, winner: Cancellation | None) -> None:
    if winner is not None:
        cancelled_by = winner.by.soeid
        raise JobNotCancellable(job_id=job.job_id, status=JobStatus.CANCELLED, cancelled_by=cancelled_by)
    if not may_become(job.status, JobStatus.CANCELLED):
        raise JobNotCancellable(job_id=job.job_id, status=job.status, cancelled_by=job.cancelled_by_soeid)
