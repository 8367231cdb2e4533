"""What a job is: the words, the job asked for (NewJob) and the job stored (Job)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from jobs_service.model.retry import DEFAULT_MAX_ATTEMPTS, RetryPolicy

MAX_SHOWN_ATTEMPTS = 50

JsonObject = dict[str, Any]
"""A JSON object as Python values: dict, list, str, int, float, bool, None."""


class JobStatus(StrEnum):
    """The five words of the platform. Waiting for anything is PENDING."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class RunType(StrEnum):
    """What a job does, and so which schema its run_parameters follow."""

    IMPORT = "IMPORT"
    SAMPLING = "SAMPLING"
    EXPLORATION = "EXPLORATION"
    SQL_TRANSFORM = "SQL_TRANSFORM"


class AttemptOutcome(StrEnum):
    """How a claim ended. FAILED, LEASE_EXPIRED and RUN_TIMED_OUT cost an attempt, RELEASED none."""

    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    RELEASED = "RELEASED"
    LEASE_EXPIRED = "LEASE_EXPIRED"
    RUN_TIMED_OUT = "RUN_TIMED_OUT"
    CANCELLED = "CANCELLED"


class JobView(StrEnum):
    """How much of a job is read: BASIC leaves run_parameters and output_summary in the database.

    STATUS is what GetJobStatus answers: BASIC, and the output_summary of a job that is COMPLETED.
    """

    BASIC = "BASIC"
    STATUS = "STATUS"
    FULL = "FULL"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job asked for, checked by everything that the request alone shows.

    source_commit_id, description, external_id: None when not given.
    run_parameters: integral numbers are ints, at most 256 KiB as compact JSON.
    payload_bytes: the size of run_parameters as JSON with all digits of its numbers.
    request_hash: 32 bytes, over the fields that are set; see core.validation.
    run_timeout, retry_policy: None means the default of model.retry.
    depends_on: ids of other jobs, each once. keep_waiting: for one that failed too.
    """

    dataset_id: int
    run_type: RunType
    run_parameters: JsonObject
    payload_bytes: int
    request_hash: bytes
    source_commit_id: str | None = None
    description: str | None = None
    external_id: str | None = None
    priority: int = 0
    request_id: UUID | None = None
    validate_only: bool = False
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    start_delay: timedelta = timedelta(0)
    run_timeout: timedelta | None = None
    retry_policy: RetryPolicy | None = None
    depends_on: tuple[UUID, ...] = ()
    keep_waiting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JobError:
    """Why a job failed, as its worker said it."""

    type: str
    message: str
    retryable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A claim of a job. end_time, outcome: None while it runs. error: only where it failed."""

    number: int
    worker_id: str
    start_time: datetime
    end_time: datetime | None = None
    outcome: AttemptOutcome | None = None
    error: JobError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as stored. All times are the database's clock, in UTC.

    owner_soeid is None when the owner is gone, dataset_name when the data set is.
    creator_soeid is None unless another than the owner made the job.
    progress: {percent, message, details} as JSON, None before the first report.
    run_parameters, output_summary: None when the view left them out.
    waiting_on: the dependencies that are not COMPLETED; only of a job that is PENDING.
    attempts: the newest MAX_SHOWN_ATTEMPTS claims, oldest first, the running one last; only in view FULL,
    as worker_id and lease_expire_time, which only a RUNNING job has.
    payload_bytes: both of them together as JSON with all digits of their numbers.
    """

    job_id: UUID
    run_type: RunType
    status: JobStatus
    dataset_id: int
    dataset_name: str | None
    owner_id: int
    owner_soeid: str | None
    creator_id: int
    creator_soeid: str | None
    description: str | None
    external_id: str | None
    priority: int
    attempt: int
    max_attempts: int
    create_time: datetime
    available_time: datetime
    update_time: datetime
    version: int
    payload_bytes: int
    start_time: datetime | None = None
    end_time: datetime | None = None
    progress: Mapping[str, Any] | None = None
    error: JobError | None = None
    cancelled_by_soeid: str | None = None
    cancel_reason: str | None = None
    source_commit_id: str | None = None
    output_commit_id: str | None = None
    run_parameters: JsonObject | None = None
    output_summary: JsonObject | None = None
    waiting_on: tuple[UUID, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    worker_id: str | None = None
    lease_expire_time: datetime | None = None
