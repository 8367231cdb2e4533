"""How a claim ends: what its worker says, or the sweep finds, made what is written. Pure rules."""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from uuid import UUID

from jobs_service.model.job import AttemptOutcome, JobError, JobStatus, RunType
from jobs_service.model.retry import MAX_RELEASES, RetryPolicy
from jobs_service.model.states import EventType
from jobs_service.model.work import Completion, Failure, Outcome, Release

MAX_ERROR_TYPE = 100
MAX_ERROR_MESSAGE = 1_000
LEASE_EXPIRED = "LeaseExpired"
RUN_TIMEOUT = "RunTimeout"
RELEASED_TOO_OFTEN = "ReleasedTooOften"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldJob:
    """A job that is RUNNING and locked, as its claim has it. lease_token: the one that has it."""

    job_id: UUID
    run_type: RunType
    dataset_id: int
    lease_token: UUID
    attempt: int
    max_attempts: int
    releases: int
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)


@dataclass(frozen=True, slots=True)
class Overdue:
    """What the sweep finds: whose lease it was, and for how long (of the lease, or of the attempt)."""

    worker_id: str
    timed_out: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What the end of a claim makes of its job.

    status, attempt, releases: of the job afterwards. delay: until it may be claimed again, if PENDING.
    error: of the attempt; the job's too where that is FAILED. completion: only of one that is COMPLETED.
    """

    job: HeldJob
    status: JobStatus
    outcome: AttemptOutcome
    event: EventType
    attempt: int
    releases: int = 0
    delay: timedelta = timedelta(0)
    error: JobError | None = None
    completion: Completion | None = None

    @property
    def will_retry(self) -> bool:
        """Whether it makes the job PENDING again."""
        return self.status is JobStatus.PENDING

    @property
    def reason(self) -> str | None:
        """What the history says of it."""
        return f"{self.error.type}: {self.error.message}" if self.error else None


def ending(job: HeldJob, outcome: Outcome) -> Ending:
    """Return what this outcome, said by the worker that has the job, makes of it."""
    match outcome:
        case Completion():
            return Ending(
                job=job,
                status=JobStatus.COMPLETED,
                outcome=AttemptOutcome.COMPLETED,
                event=EventType.COMPLETED,
                attempt=job.attempt,
                completion=outcome,
            )
        case Failure():
            error = _error(outcome.type, outcome.message, retryable=not outcome.non_retryable)
            return _failed(job, error, outcome.retry_delay)
        case Release():
            return _released(job, outcome)


def overdue(job: HeldJob, found: Overdue) -> Ending:
    """Return what the sweep makes of a job whose lease has expired, or whose attempt took too long."""
    if found.timed_out:
        message = f"worker {found.worker_id} did not end the attempt within {found.seconds:g} seconds"
        error = _error(RUN_TIMEOUT, message, retryable=True)
        outcome, event = AttemptOutcome.RUN_TIMED_OUT, EventType.RUN_TIMED_OUT
    else:
        message = f"worker {found.worker_id} was not heard of for {found.seconds:g} seconds"
        error = _error(LEASE_EXPIRED, message, retryable=True)
        outcome, event = AttemptOutcome.LEASE_EXPIRED, EventType.LEASE_EXPIRED
    return replace(_failed(job, error, None), outcome=outcome, event=event)


def is_repeated(outcome: Outcome, ended: AttemptOutcome, error_type: str | None) -> bool:
    """Whether the call with this outcome is of the kind that ended the claim so."""
    match outcome:
        case Completion():
            return ended is AttemptOutcome.COMPLETED
        case Failure():
            return ended is AttemptOutcome.FAILED
        case Release():
            too_often = ended is AttemptOutcome.FAILED and error_type == RELEASED_TOO_OFTEN
            return ended is AttemptOutcome.RELEASED or too_often


def cut(text: str, limit: int) -> str:
    """Return as much of the text as fits in so many bytes of UTF-8, whole characters only."""
    encoded = text.encode()
    return text if len(encoded) <= limit else encoded[:limit].decode(errors="ignore")


def _failed(job: HeldJob, error: JobError, delay: timedelta | None) -> Ending:
    again = error.retryable and job.attempt < job.max_attempts
    return Ending(
        job=job,
        status=JobStatus.PENDING if again else JobStatus.FAILED,
        outcome=AttemptOutcome.FAILED,
        event=EventType.ATTEMPT_FAILED if again else EventType.FAILED,
        attempt=job.attempt,
        delay=(job.retry_policy.delay(job.attempt) if delay is None else delay) if again else timedelta(0),
        error=error,
    )


def _released(job: HeldJob, release: Release) -> Ending:
    if not release.unseen and job.releases >= MAX_RELEASES:
        message = f"workers gave the job back more than {MAX_RELEASES} times in a row"
        return _failed(job, _error(RELEASED_TOO_OFTEN, message, retryable=True), None)
    return Ending(
        job=job,
        status=JobStatus.PENDING,
        outcome=AttemptOutcome.RELEASED,
        event=EventType.RELEASED,
        attempt=job.attempt - 1,
        releases=job.releases if release.unseen else job.releases + 1,
        delay=release.delay,
    )


def _error(kind: str, message: str, *, retryable: bool) -> JobError:
    return JobError(
        type=cut(kind, MAX_ERROR_TYPE), message=cut(message, MAX_ERROR_MESSAGE), retryable=retryable
    )
