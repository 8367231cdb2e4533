"""New jobs: their rows, and those of the queue, in one statement."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Double,
    Integer,
    Interval,
    Text,
    Uuid,
    false,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB, insert

from jobs_service.model.job import NewJob
from jobs_service.storage.job_queue import queue_rows
from jobs_service.storage.queue_tables import job_queue
from jobs_service.storage.recordset import interval, recordset
from jobs_service.storage.tables import jobs
from jobs_service.storage.turns import turn_of


@dataclass(frozen=True, slots=True)
class JobInsert:
    """A row to be: the job asked for, its id, who owns and makes it, and in which trace.

    waits: for another job that has not ended; until then it is not in the queue.
    """

    job_id: UUID
    owner_id: int
    creator_id: int
    job: NewJob
    traceparent: str | None = None
    waits: bool = False


@dataclass(frozen=True, slots=True)
class InsertedJob:
    """When the job was made; whether it can be claimed now. held: once its data set has a place for it."""

    create_time: datetime
    claimable: bool
    held: bool


_new = recordset(
    "new",
    {
        "job_id": Uuid(),
        "run_type": Text(),
        "dataset_id": BigInteger(),
        "owner_id": BigInteger(),
        "creator_id": BigInteger(),
        "description": Text(),
        "external_id": Text(),
        "priority": Integer(),
        "source_commit_id": Text(),
        "request_id": Uuid(),
        "request_hash": Text(),
        "payload_bytes": Integer(),
        "run_parameters": JSONB(),
        "traceparent": Text(),
        "max_attempts": Integer(),
        "attempt_budget": Integer(),
        "start_delay": Interval(),
        "run_timeout": Interval(),
        "retry_initial": Interval(),
        "retry_max": Interval(),
        "retry_multiplier": Double(),
        "dependencies": Integer(),
        "keep_waiting": Boolean(),
        "waits": Boolean(),
    },
)
_new_values: dict[str, ColumnElement[Any]] = {
    **{column.name: column for column in _new.columns if column.name not in {"start_delay", "waits"}},
    "request_hash": func.decode(_new.c.request_hash, "hex"),
    "available_time": func.now() + _new.c.start_delay,
    "turn": turn_of(_new, _new.c.priority.desc(), _new.c.job_id),
}
_inserted = (
    insert(jobs)
    .from_select(
        list(_new_values),
        # One order everywhere: two batches that share request ids would deadlock otherwise.
        select(*(value.label(name) for name, value in _new_values.items())).order_by(
            _new.c.owner_id, _new.c.creator_id, _new.c.request_id, _new.c.job_id
        ),
    )
    .on_conflict_do_nothing(
        index_elements=[jobs.c.owner_id, jobs.c.creator_id, jobs.c.request_id],
        index_where=jobs.c.request_id.is_not(None),
    )
    .returning(
        *(jobs.c[name] for name in ("job_id", "run_type", "dataset_id", "priority", "turn")),
        *(jobs.c[name] for name in ("payload_bytes", "create_time", "available_time")),
    )
    .cte("inserted")
)
_free = (
    select(_inserted)
    .where(_inserted.c.job_id.not_in(select(_new.c.job_id).where(_new.c.waits)))
    .subquery("free")
)
_queued = (
    queue_rows(_free, now=func.now())
    .returning(job_queue.c.job_id, job_queue.c.ready, job_queue.c.held)
    .cte("queued")
)
INSERT = select(
    _inserted.c.job_id,
    _inserted.c.create_time,
    func.coalesce(_queued.c.ready & ~_queued.c.held, false()).label("claimable"),
    func.coalesce(_queued.c.held, false()).label("held"),
).select_from(_inserted.outerjoin(_queued, _queued.c.job_id == _inserted.c.job_id))


def insert_record(item: JobInsert) -> dict[str, object]:
    """Return the record of INSERT for this row."""
    job, policy = item.job, item.job.retry_policy
    return {
        "job_id": item.job_id,
        "run_type": job.run_type,
        "dataset_id": job.dataset_id,
        "owner_id": item.owner_id,
        "creator_id": item.creator_id,
        "description": job.description,
        "external_id": job.external_id,
        "priority": job.priority,
        "source_commit_id": job.source_commit_id,
        "request_id": job.request_id,
        "request_hash": None if job.request_id is None else job.request_hash.hex(),
        "payload_bytes": job.payload_bytes,
        "run_parameters": job.run_parameters,
        "traceparent": item.traceparent,
        "max_attempts": job.max_attempts,
        "attempt_budget": job.max_attempts,
        "start_delay": interval(job.start_delay),
        "run_timeout": interval(job.run_timeout),
        "retry_initial": interval(policy.initial if policy else None),
        "retry_max": interval(policy.longest if policy else None),
        "retry_multiplier": policy.multiplier if policy else None,
        "dependencies": len(job.depends_on),
        "keep_waiting": job.keep_waiting,
        "waits": item.waits,
    }
