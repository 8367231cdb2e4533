"""How a job is read: the columns of each view, its names among them, and the row made a Job."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Row, case, cast, func, null, select
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from jobs_service.model.job import (
    MAX_SHOWN_ATTEMPTS,
    Attempt,
    AttemptOutcome,
    Job,
    JobError,
    JobStatus,
    JobView,
    RunType,
)
from jobs_service.storage.dependency_store import waiting_on
from jobs_service.storage.queue_tables import job_attempts, job_leases
from jobs_service.storage.tables import datasets, jobs, users

_PAYLOADS = (jobs.c.run_parameters, jobs.c.output_summary)
_NOT_OF_A_JOB = (jobs.c.request_id, jobs.c.request_hash, jobs.c.traceparent)
# Looked up row by row, by primary key, whatever the planner thinks: a join to a batch, which it takes
# for 100 rows, it may make by reading the whole table. Each may be gone.
_owner = select(users.c.soeid).where(users.c.user_id == jobs.c.owner_id).scalar_subquery()
_creator = select(users.c.soeid).where(users.c.user_id == jobs.c.creator_id).scalar_subquery()
_dataset = select(datasets.c.name).where(datasets.c.dataset_id == jobs.c.dataset_id).scalar_subquery()
_BASIC: list[ColumnElement[Any]] = [
    *(column for column in jobs.c if column not in set(_PAYLOADS + _NOT_OF_A_JOB)),
    _owner.label("owner_soeid"),
    case((jobs.c.creator_id != jobs.c.owner_id, _creator)).label("creator_soeid"),
    _dataset.label("dataset_name"),
    case(
        ((jobs.c.status == JobStatus.PENDING.value) & (jobs.c.dependencies > 0), waiting_on(jobs.c.job_id))
    ).label("waiting_on"),
]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _microseconds(time: ColumnElement[Any]) -> ColumnElement[int]:
    # As a number: the text of a time depends on settings of the session.
    return cast(func.extract("epoch", time) * 1_000_000, BigInteger)


_attempts = func.array(
    select(
        func.jsonb_build_array(
            job_attempts.c.number,
            job_attempts.c.worker_id,
            _microseconds(job_attempts.c.start_time),
            _microseconds(job_attempts.c.end_time),
            job_attempts.c.outcome,
            job_attempts.c.error_type,
            job_attempts.c.error_message,
            job_attempts.c.error_retryable,
            type_=JSONB(),
        )
    )
    .where(job_attempts.c.job_id == jobs.c.job_id)
    .order_by(job_attempts.c.claim.desc())
    .limit(MAX_SHOWN_ATTEMPTS)
    .scalar_subquery(),
    type_=ARRAY(JSONB),
)
_lease = (
    select(
        func.jsonb_build_array(
            job_leases.c.attempt,
            job_leases.c.worker_id,
            _microseconds(job_leases.c.start_time),
            _microseconds(job_leases.c.lease_expire_time),
            type_=JSONB(),
        )
    )
    .where(job_leases.c.job_id == jobs.c.job_id)
    .scalar_subquery()
)
# Looked up only where there can be any: most jobs that are listed or read wait, or were claimed once.
_CLAIMS: list[ColumnElement[Any]] = [
    case((jobs.c.claims > 0, _attempts)).label("ended_attempts"),
    case((jobs.c.status == JobStatus.RUNNING.value, _lease)).label("lease"),
]
_left_out = null().cast(JSONB(none_as_null=True))
_NO_CLAIMS = [null().cast(column.type).label(column.name) for column in _CLAIMS]
_summary_if_completed = case(
    (jobs.c.status == JobStatus.COMPLETED.value, jobs.c.output_summary), else_=_left_out
)

COLUMNS: dict[JobView, list[ColumnElement[Any]]] = {
    # A payload that is not selected stays in its TOAST table: that is what makes BASIC cheap.
    JobView.BASIC: [
        *_BASIC,
        _left_out.label("run_parameters"),
        _left_out.label("output_summary"),
        *_NO_CLAIMS,
    ],
    JobView.STATUS: [
        *_BASIC,
        _left_out.label("run_parameters"),
        _summary_if_completed.label("output_summary"),
        *_NO_CLAIMS,
    ],
    JobView.FULL: [*_BASIC, *_PAYLOADS, *_CLAIMS],
}


def job_of(row: Row[Any]) -> Job:
    """Return the job of a row that has the COLUMNS of a view."""
    ended = tuple(_ended_attempt(*values) for values in reversed(row.ended_attempts or ()))
    running = () if row.lease is None else (_running_attempt(*row.lease[:3]),)
    return Job(
        job_id=row.job_id,
        run_type=RunType(row.run_type),
        status=JobStatus(row.status),
        dataset_id=row.dataset_id,
        dataset_name=row.dataset_name,
        owner_id=row.owner_id,
        owner_soeid=row.owner_soeid,
        creator_id=row.creator_id,
        creator_soeid=row.creator_soeid,
        description=row.description,
        external_id=row.external_id,
        priority=row.priority,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        create_time=row.create_time,
        available_time=row.available_time,
        update_time=row.update_time,
        version=row.version,
        payload_bytes=row.payload_bytes,
        start_time=row.start_time,
        end_time=row.end_time,
        progress=row.progress,
        error=_error_of(row),
        cancelled_by_soeid=row.cancelled_by_soeid,
        cancel_reason=row.cancel_reason,
        source_commit_id=row.source_commit_id,
        output_commit_id=row.output_commit_id,
        run_parameters=row.run_parameters,
        output_summary=row.output_summary,
        waiting_on=tuple(row.waiting_on or ()),
        attempts=(ended + running)[-MAX_SHOWN_ATTEMPTS:],
        worker_id=None if row.lease is None else row.lease[1],
        lease_expire_time=None if row.lease is None else _time(row.lease[3]),
    )


def _time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def _running_attempt(number: int, worker_id: str, start: int) -> Attempt:
    return Attempt(number=number, worker_id=worker_id, start_time=_time(start))


def _ended_attempt(
    number: int,
    worker_id: str,
    start: int,
    end: int,
    outcome: str,
    error_type: str | None,
    error_message: str | None,
    error_retryable: bool | None,
) -> Attempt:
    error = None
    if error_type is not None:
        error = JobError(type=error_type, message=error_message or "", retryable=bool(error_retryable))
    return Attempt(
        number=number,
        worker_id=worker_id,
        start_time=_time(start),
        end_time=_time(end),
        outcome=AttemptOutcome(outcome),
        error=error,
    )


def _error_of(row: Row[Any]) -> JobError | None:
    if row.error_message is None and row.error_type is None:
        return None
    return JobError(
        type=row.error_type or "",
        message=row.error_message or "",
        retryable=bool(row.error_retryable),
    )
