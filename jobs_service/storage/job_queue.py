"""The queue of PENDING jobs that wait for no other job: into it and out of it."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Uuid,
    bindparam,
    delete,
    exists,
    func,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, Insert, insert

from jobs_service.model.job import JobStatus, RunType
from jobs_service.storage.queue_tables import dataset_limits, job_queue
from jobs_service.storage.tables import jobs


@dataclass(frozen=True, slots=True)
class Enqueued:
    """run_types: of those that can be claimed at once. limited: data sets whose places are to be filled."""

    run_types: frozenset[RunType]
    limited: frozenset[int]


def queue_rows(source: FromClause, *, now: ColumnElement[Any]) -> Insert:
    """Return the insert of a queue row for each row of source, which has the columns of a job."""
    # Its places are given under the lock of its limit; see storage/places.py.
    limited = exists().where(dataset_limits.c.dataset_id == source.c.dataset_id)
    values = {
        "job_id": source.c.job_id,
        "run_type": source.c.run_type,
        "neg_priority": -source.c.priority,
        "turn": source.c.turn,
        "dataset_id": source.c.dataset_id,
        "payload_bytes": source.c.payload_bytes,
        "available_time": source.c.available_time,
        "ready": source.c.available_time <= now,
        "limited": limited,
        "held": limited,
    }
    return insert(job_queue).from_select(
        list(values), select(*(value.label(name) for name, value in values.items())).order_by(source.c.job_id)
    )


_job_ids = bindparam("job_ids", type_=ARRAY(Uuid))
_pending = (
    select(jobs)
    .where(
        jobs.c.job_id == func.any(_job_ids),
        jobs.c.status == literal(JobStatus.PENDING.value, literal_execute=True),
    )
    .subquery("pending")
)
_ENQUEUE = (
    queue_rows(_pending, now=func.statement_timestamp())
    .on_conflict_do_nothing(index_elements=[job_queue.c.job_id])
    .returning(job_queue.c.run_type, job_queue.c.dataset_id, job_queue.c.ready, job_queue.c.held)
)
_REMOVE = (
    delete(job_queue)
    .where(job_queue.c.job_id == func.any(_job_ids))
    .returning(job_queue.c.dataset_id, job_queue.c.limited, job_queue.c.ready, job_queue.c.held)
)


class JobQueue:
    """The job_queue table."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def enqueue(self, job_ids: Collection[UUID]) -> Enqueued:
        """Put those of these jobs into the queue that are PENDING and not there yet, as their rows say.

        The caller has locked the jobs, and lets places.fill decide about those of limited data sets.
        """
        if not job_ids:
            return Enqueued(frozenset(), frozenset())
        found = self._connection.execute(_ENQUEUE, {"job_ids": sorted(job_ids)}).all()
        return Enqueued(
            frozenset(RunType(row.run_type) for row in found if row.ready and not row.held),
            frozenset(row.dataset_id for row in found if row.held),
        )

    def remove(self, job_ids: Collection[UUID]) -> frozenset[int]:
        """Take these jobs, which the caller has locked, out of the queue.

        Returns the limited data sets in which one of them had a place.
        """
        if not job_ids:
            return frozenset()
        gone = self._connection.execute(_REMOVE, {"job_ids": sorted(job_ids)})
        return frozenset(row.dataset_id for row in gone if row.limited and row.ready and not row.held)
