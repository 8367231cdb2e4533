"""Ending claims as their workers say: each by its token, once; and the same answer to the same call again."""

from collections.abc import Mapping, Sequence
from uuid import UUID

from jobs_service.core import permissions
from jobs_service.core.end_claims import end_claims
from jobs_service.model.caller import Caller
from jobs_service.model.endings import Ending, ending, is_repeated
from jobs_service.model.errors import JobNotFound, JobsError, LeaseLost, RowLocked
from jobs_service.model.job import Job, JobStatus, JobView
from jobs_service.model.work import FinishRequest, FinishResult
from jobs_service.storage.database import Transaction
from jobs_service.storage.job_queue import WorkerStanding
from jobs_service.storage.lease_store import Standing, Token


def finish_jobs(
    tx: Transaction, requests: Sequence[FinishRequest], view: JobView, *, wait: bool
) -> list[FinishResult | JobsError]:
    """End the claims asked for; see WorkerService.finish_jobs. wait: for jobs that others hold."""
    workers = tx.queue.begin_claims({request.caller.user_id for request in requests})
    refusals = [_refusal(request.caller, workers) for request in requests]
    allowed = [one for one, refusal in zip(requests, refusals, strict=True) if refusal is None]
    if not allowed:
        return [refusal for refusal in refusals if refusal is not None]
    _end(tx, allowed, wait=wait)
    # Whoever ended it, and whenever: what the token's claim came to is the answer to all.
    standings = tx.leases.standings([Token(one.job_id, one.lease_token) for one in allowed])
    jobs = tx.jobs.read({one.job_id for one in allowed}, view)
    answers = (
        _answer(request, standing, jobs.get(request.job_id), workers[request.caller.user_id])
        for request, standing in zip(allowed, standings, strict=True)
    )
    return [next(answers) if refusal is None else refusal for refusal in refusals]


def _refusal(caller: Caller, workers: Mapping[int, WorkerStanding]) -> JobsError | None:
    try:
        permissions.require_worker(caller, workers[caller.user_id].role)
    except JobsError as refusal:
        return refusal
    return None


def _end(tx: Transaction, requests: Sequence[FinishRequest], *, wait: bool) -> None:
    """End what the tokens have. Of several requests with one token the first wins."""
    tokens: dict[UUID, set[UUID]] = {}
    for request in requests:
        tokens.setdefault(request.job_id, set()).add(request.lease_token)
    held = tx.endings.hold(tokens, wait=wait)
    endings: dict[UUID, Ending] = {}
    actors: dict[UUID, Caller] = {}
    for request in requests:
        job = held.get(request.job_id)
        if job is not None and job.lease_token == request.lease_token and job.job_id not in endings:
            endings[job.job_id] = ending(job, request.outcome)
            actors[job.job_id] = request.caller
    end_claims(tx, list(endings.values()), actors, wait=wait)


def _answer(
    request: FinishRequest, standing: Standing | None, job: Job | None, worker: WorkerStanding
) -> FinishResult | JobsError:
    if standing is None or job is None:
        return JobNotFound(job_id=request.job_id)
    ended = standing.ended
    if ended is not None and is_repeated(request.outcome, ended.outcome, ended.error_type):
        return FinishResult(job, ended.will_retry)
    if standing.is_current and standing.status is JobStatus.RUNNING:
        # Another transaction holds the job; nothing was written.
        return RowLocked()
    was_its_own = ended is not None or standing.is_current
    if was_its_own or permissions.works_on(worker.role, worker.run_types, standing.run_type):
        return LeaseLost(job_id=request.job_id, status=standing.status, attempt=standing.attempt)
    return JobNotFound(job_id=request.job_id)
