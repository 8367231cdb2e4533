"""Jobs as they go over the wire."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from jobs.v1 import jobs_pb2
from jobs_service.model.job import Attempt, AttemptOutcome, Job, JobError, JobStatus, JobView, RunType
from jobs_service.model.requests import CreateResult
from jobs_service.model.states import TERMINAL
from jobs_service.transport import structs
from jobs_service.transport.requests import RUN_TYPES, STATUSES

MAX_BYTES = 3 * 1024 * 1024
"""Of an answer. Clients take 4 MiB by default."""

_STATUS_NUMBERS: dict[JobStatus, Any] = {status: number for number, status in STATUSES.items()}
_OUTCOME_NUMBERS: dict[AttemptOutcome, Any] = {
    outcome: jobs_pb2.AttemptOutcome.Value(f"ATTEMPT_OUTCOME_{outcome}") for outcome in AttemptOutcome
}
_RUN_TYPE_NUMBERS: dict[RunType, Any] = {run_type: number for number, run_type in RUN_TYPES.items()}


def run_type_number(run_type: RunType) -> Any:
    """Return the enum's value."""
    return _RUN_TYPE_NUMBERS[run_type]


def create_response(result: CreateResult) -> jobs_pb2.CreateJobResponse:
    """Return the answer of CreateJob."""
    return jobs_pb2.CreateJobResponse(job=created_job(result, JobView.FULL), replayed=result.replayed)


def created_job(result: CreateResult, view: JobView) -> jobs_pb2.Job:
    """Return the job of a result; one that is only planned has no id and no times."""
    job = to_message(result.job, view)
    if result.planned:
        for field in ("job_id", "create_time", "available_time", "update_time"):
            job.ClearField(field)
    return job


def status_response(job: Job) -> jobs_pb2.GetJobStatusResponse:
    """Return the answer of GetJobStatus."""
    response = jobs_pb2.GetJobStatusResponse(
        job_id=str(job.job_id),
        run_type=_RUN_TYPE_NUMBERS[job.run_type],
        status=_STATUS_NUMBERS[job.status],
        dataset_id=job.dataset_id,
        error_message=job.error.message if job.error else "",
        version=job.version,
        done=job.status in TERMINAL,
    )
    _set_time(response.create_time, job.create_time)
    _set_time(response.end_time, job.end_time)
    if job.progress is not None:
        _set_progress(response.progress, job.progress)
    if job.status is JobStatus.COMPLETED and job.output_summary is not None:
        structs.to_struct(job.output_summary, response.output_summary)
    return response


def to_message(job: Job, view: JobView) -> jobs_pb2.Job:
    """Return a job with the fields of the view."""
    message = jobs_pb2.Job(
        job_id=str(job.job_id),
        run_type=_RUN_TYPE_NUMBERS[job.run_type],
        status=_STATUS_NUMBERS[job.status],
        dataset_id=job.dataset_id,
        dataset_name=job.dataset_name or "",
        user_soeid=job.owner_soeid or "",
        creator_soeid=job.creator_soeid or "",
        description=job.description or "",
        external_id=job.external_id or "",
        priority=job.priority,
        attempt=job.attempt,
        max_attempts=job.max_attempts,
        error_message=job.error.message if job.error else "",
        cancelled_by_soeid=job.cancelled_by_soeid or "",
        cancel_reason=job.cancel_reason or "",
        version=job.version,
        waiting_on_job_ids=[str(job_id) for job_id in job.waiting_on],
    )
    if job.owner_soeid is not None:
        message.user_id = job.owner_id
    _set_time(message.create_time, job.create_time)
    _set_time(message.available_time, job.available_time)
    _set_time(message.start_time, job.start_time)
    _set_time(message.update_time, job.update_time)
    _set_time(message.end_time, job.end_time)
    if job.progress is not None:
        _set_progress(message.progress, job.progress)
    if view is JobView.FULL:
        _set_full(message, job)
    return message


def _set_full(message: jobs_pb2.Job, job: Job) -> None:
    message.source_commit_id = job.source_commit_id or ""
    message.output_commit_id = job.output_commit_id or ""
    if job.run_parameters is not None:
        structs.to_struct(job.run_parameters, message.run_parameters)
    if job.output_summary is not None:
        structs.to_struct(job.output_summary, message.output_summary)
    if job.error is not None:
        _set_error(message.error, job.error)
    message.worker_id = job.worker_id or ""
    _set_time(message.lease_expire_time, job.lease_expire_time)
    for attempt in job.attempts:
        _set_attempt(message.attempts.add(), attempt)


def _set_attempt(message: jobs_pb2.JobAttempt, attempt: Attempt) -> None:
    message.number = attempt.number
    message.worker_id = attempt.worker_id
    _set_time(message.start_time, attempt.start_time)
    _set_time(message.end_time, attempt.end_time)
    if attempt.outcome is not None:
        message.outcome = _OUTCOME_NUMBERS[attempt.outcome]
    if attempt.error is not None:
        _set_error(message.error, attempt.error)


def _set_error(message: jobs_pb2.JobError, error: JobError) -> None:
    message.type = error.type
    message.message = error.message
    message.retryable = error.retryable


def _set_progress(message: jobs_pb2.JobProgress, progress: Mapping[str, Any]) -> None:
    message.SetInParent()
    message.percent = progress.get("percent") or 0.0
    message.message = progress.get("message") or ""
    if progress.get("details") is not None:
        structs.to_struct(progress["details"], message.details)


def _set_time(field: Timestamp, moment: datetime | None) -> None:
    if moment is not None:
        field.FromDatetime(moment)
