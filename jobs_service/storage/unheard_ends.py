"""Ends of jobs that nobody told those who wait of: release 0.1.0 cancels, and knows of no dependants."""

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import Connection, DateTime, Integer, Uuid, bindparam, func, literal, select, true, tuple_
from sqlalchemy.dialects.postgresql import insert

from jobs_service.model.job import JobStatus
from jobs_service.storage.queue_tables import ended_dependencies, job_dependencies
from jobs_service.storage.tables import jobs


@dataclass(frozen=True, slots=True)
class Looked:
    """Where a look at the jobs that have not ended, newest first, has come to."""

    create_time: datetime
    job_id: UUID


NEWEST = Looked(datetime.max.replace(tzinfo=UTC), UUID(int=(1 << 128) - 1))

_HOPELESS = (JobStatus.FAILED.value, JobStatus.CANCELLED.value)
_portion = bindparam("portion", type_=Integer)
_looked = (
    select(jobs.c.job_id, jobs.c.create_time, jobs.c.status, jobs.c.dependencies, jobs.c.keep_waiting)
    .where(
        jobs.c.end_time.is_(None),
        tuple_(jobs.c.create_time, jobs.c.job_id)
        < tuple_(bindparam("create_time", type_=DateTime(timezone=True)), bindparam("job_id", type_=Uuid)),
    )
    .order_by(jobs.c.create_time.desc(), jobs.c.job_id.desc())
    .limit(_portion)
    .cte("looked")
    .prefix_with("MATERIALIZED")
)
_dependency = jobs.alias("dependency")
_status = (
    select(_dependency.c.status)
    .where(_dependency.c.job_id == job_dependencies.c.depends_on_job_id)
    .scalar_subquery()
)
_of_one = (
    select(job_dependencies.c.depends_on_job_id)
    .where(job_dependencies.c.job_id == _looked.c.job_id, _status.in_(_HOPELESS))
    # Each is looked up by its key, whatever the planner takes a portion for.
    .offset(literal(0, Integer, literal_execute=True))
    .lateral("of_one")
)
_unheard = (
    select(_of_one.c.depends_on_job_id)
    .select_from(_looked.join(_of_one, true()))
    .where(
        _looked.c.dependencies > 0,
        ~_looked.c.keep_waiting,
        _looked.c.status == literal(JobStatus.PENDING.value, literal_execute=True),
    )
    .group_by(_of_one.c.depends_on_job_id)
    .order_by(_of_one.c.depends_on_job_id)
)
_noted = (
    insert(ended_dependencies)
    .from_select(["job_id"], _unheard)
    .on_conflict_do_nothing(index_elements=[ended_dependencies.c.job_id])
    .cte("noted")
)
_NOTE = (
    select(_looked.c.create_time, _looked.c.job_id, func.count().over().label("jobs"))
    .order_by(_looked.c.create_time, _looked.c.job_id)
    .limit(1)
    .add_cte(_noted)
)


class UnheardEnds:
    """What the tables say of jobs that wait for one that has ended."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def note(self, after: Looked, portion: int) -> Looked:
        """Look at the next so many jobs; what one waits for in vain is noted in ended_dependencies.

        Whoever ends a job here tells in the same transaction, or notes it: only ends of others are found.
        Returns where the next portion begins; NEWEST: that was the last one.
        """
        parameters = {"create_time": after.create_time, "job_id": after.job_id, "portion": portion}
        last = self._connection.execute(_NOTE, parameters).first()
        return Looked(last.create_time, last.job_id) if last and last.jobs == portion else NEWEST
