"""RetryJob: jobs that are FAILED or CANCELLED made PENDING again, with as many attempts as at first."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from jobs_service.core.end_claims import follow_up
from jobs_service.core.locked_jobs import allowed, locked_job
from jobs_service.core.permissions import Action
from jobs_service.model.errors import (
    DependencyNotFound,
    DependencyNotSatisfiable,
    JobNotRetryable,
    JobsError,
    RowLocked,
)
from jobs_service.model.job import Job, JobStatus, JobView
from jobs_service.model.requests import GetRequest, RetryRequest
from jobs_service.model.retry import MAX_TOTAL_ATTEMPTS
from jobs_service.model.states import TERMINAL, EventType, may_become
from jobs_service.storage.database import Transaction
from jobs_service.storage.event_store import Event
from jobs_service.storage.job_store import LockedJobs

_HOPELESS = frozenset({JobStatus.FAILED, JobStatus.CANCELLED})


@dataclass(frozen=True, slots=True)
class _Needs:
    """What the jobs need, as it is under its locks.

    waited: for all that others held. datasets: those that there are. unfinished: the dependencies of each
    job that are not COMPLETED; None: there is no such job any more. shared: those of them that are locked.
    """

    waited: bool
    datasets: Collection[int]
    unfinished: Mapping[UUID, Mapping[UUID, JobStatus | None]]
    shared: Mapping[UUID, JobStatus]
    keep_waiting: Collection[UUID]

    def waits(self, job_id: UUID) -> bool:
        """Whether the job waits for another one."""
        needed = self.unfinished.get(job_id, {})
        return any(self.shared.get(each) is not JobStatus.COMPLETED for each in needed)


def retry_jobs(tx: Transaction, requests: Sequence[RetryRequest], *, wait: bool) -> list[Job | JobsError]:
    """Retry the jobs asked for; see JobService.retry_jobs. wait: for what others hold."""
    permitted = allowed(tx, Action.RETRY, [GetRequest(one.caller, one.job_id) for one in requests])
    found = _lock(tx, {job.job_id for job in permitted if isinstance(job, Job)}, wait=wait)
    needs = _needs(tx, found, [job.job_id for job in permitted if isinstance(job, Job)], wait=wait)
    winners: dict[UUID, RetryRequest] = {}
    results: list[Job | JobsError] = []
    for request, allowance in zip(requests, permitted, strict=True):
        try:
            job = locked_job(allowance, found)
            _require_retryable(job, is_first=job.job_id not in winners)
            _require_needs(job, needs)
            winners[job.job_id] = request
            results.append(job)
        except JobsError as refusal:
            results.append(refusal)
    retried = _retry(tx, found.jobs, winners, needs)
    return [retried[result.job_id] if isinstance(result, Job) else result for result in results]


def _lock(tx: Transaction, job_ids: Collection[UUID], *, wait: bool) -> LockedJobs:
    """Lock these jobs and what they may wait for: one after the other, they would not be in order."""
    unfinished = tx.dependencies.unfinished(job_ids)
    needed = {each for dependencies in unfinished.values() for each in dependencies}
    return tx.jobs.lock({*job_ids, *needed}, JobView.BASIC, wait=wait)


def _needs(tx: Transaction, found: LockedJobs, asked: Sequence[UUID], *, wait: bool) -> _Needs:
    locked = {job_id: found.jobs[job_id] for job_id in found.locked if job_id in found.jobs}
    job_ids = [job_id for job_id in asked if job_id in locked and locked[job_id].status in _HOPELESS]
    if not job_ids:
        return _Needs(wait, (), {}, {}, ())
    datasets = tx.access.keep_datasets({locked[job_id].dataset_id for job_id in job_ids}, wait=wait)
    # Fewer at most than before the locks. Whoever ends one of these waits for us, or we see its end.
    unfinished = tx.dependencies.unfinished(job_ids)
    needed = {each for dependencies in unfinished.values() for each in dependencies}
    shared = {job_id: locked[job_id].status for job_id in needed & locked.keys()}
    keep_waiting = tx.retries.keep_waiting(unfinished) if unfinished else ()
    return _Needs(wait, datasets, unfinished, shared, keep_waiting)


def _require_retryable(job: Job, *, is_first: bool) -> None:
    status = job.status if is_first else JobStatus.PENDING
    may = status in TERMINAL and may_become(status, JobStatus.PENDING)
    if not may or job.dataset_name is None or job.attempt >= MAX_TOTAL_ATTEMPTS:
        raise JobNotRetryable(job_id=job.job_id, status=status)


def _require_needs(job: Job, needs: _Needs) -> None:
    if job.dataset_id not in needs.datasets and needs.waited:
        raise JobNotRetryable(job_id=job.job_id, status=job.status)
    if job.dataset_id not in needs.datasets:
        # Somebody is deleting it.
        raise RowLocked
    for dependency_id, before in needs.unfinished.get(job.job_id, {}).items():
        if before is None:
            raise DependencyNotFound(job_id=dependency_id)
        if dependency_id not in needs.shared:
            raise RowLocked
        status = needs.shared[dependency_id]
        if status in _HOPELESS and job.job_id not in needs.keep_waiting:
            raise DependencyNotSatisfiable(job_id=dependency_id, status=status)


def _retry(
    tx: Transaction, jobs: Mapping[UUID, Job], winners: Mapping[UUID, RetryRequest], needs: _Needs
) -> dict[UUID, Job]:
    if not winners:
        return {}
    # What an older release has left, which cancelled without a word to queue and lease.
    freed = tx.queue.remove(winners) | tx.endings.revoke(winners).limited
    tx.retries.retry(winners)
    retried = tx.jobs.read(winners, JobView.FULL)
    tx.events.append(
        [
            Event(
                type=EventType.RETRIED,
                job_id=job_id,
                run_type=jobs[job_id].run_type,
                actor=request.caller,
                status_before=jobs[job_id].status,
                status_after=JobStatus.PENDING,
                time=retried[job_id].update_time,
            )
            for job_id, request in winners.items()
        ]
    )
    back = [job_id for job_id in winners if not needs.waits(job_id)]
    follow_up(tx, back=back, freed=freed, wait=needs.waited)
    return retried
