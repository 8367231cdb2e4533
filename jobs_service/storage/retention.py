"""What goes because of its age: jobs that have ended, with all that belongs to them, and history.

A row of job_dependencies whose depends_on_job_id is gone says that this job did not end COMPLETED. Those that
name a COMPLETED job go with it: they are satisfied. Those that name a FAILED or CANCELLED one stay as long as
the dependant, which has ended too, or it could be retried as if nothing had failed.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    DateTime,
    Integer,
    Interval,
    Select,
    Text,
    Uuid,
    bindparam,
    cast,
    delete,
    exists,
    false,
    func,
    literal,
    literal_column,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from jobs_service.model.job import JobStatus
from jobs_service.storage.event_readers import Place
from jobs_service.storage.queue_tables import (
    ended_dependencies,
    job_attempts,
    job_dependencies,
    job_leases,
    job_queue,
)
from jobs_service.storage.tables import Xid8, job_counts, job_events, jobs

JOBS = 500
"""Jobs that one transaction looks at."""
DEPENDANTS = 10_000
"""Rows of dependants that one transaction deletes; a job with more of them goes in a later pass."""
EVENTS = 5_000
"""Events that one transaction looks at."""


@dataclass(frozen=True, slots=True)
class Aged:
    """A job that ended long ago, and where it stands among them: by end_time, then job_id."""

    end_time: datetime
    job_id: UUID


BEGINNING = Aged(datetime.min.replace(tzinfo=UTC), UUID(int=0))


@dataclass(frozen=True, slots=True)
class DeletedEvents:
    """looked_at: events after a place, EVENTS at most; how many of them were deleted, up to which id."""

    looked_at: int
    deleted: int
    last: int


_long_ago = func.now() - cast(bindparam("age"), Interval)
_ended_long_ago = jobs.c.end_time < _long_ago
_after_time = bindparam("end_time", type_=DateTime(timezone=True))
_AGED = (
    select(jobs.c.end_time, jobs.c.job_id)
    .where(
        _ended_long_ago,
        # The index knows end_time alone.
        jobs.c.end_time >= _after_time,
        tuple_(jobs.c.end_time, jobs.c.job_id) > tuple_(_after_time, bindparam("job_id", type_=Uuid)),
    )
    .order_by(jobs.c.end_time, jobs.c.job_id)
    .limit(literal(JOBS, Integer, literal_execute=True))
)

_job_ids = bindparam("job_ids", type_=ARRAY(Uuid))
_LOCK = (
    select(jobs.c.job_id)
    .where(jobs.c.job_id == func.any(_job_ids))
    .order_by(jobs.c.job_id)
    .with_for_update(skip_locked=True)
)
_place = tuple_(cast(bindparam("transaction_id", type_=Text), Xid8), bindparam("event_id", type_=BigInteger))
_dependant = jobs.alias("dependant")
_FREE = select(jobs.c.job_id, jobs.c.status).where(
    jobs.c.job_id == func.any(_job_ids),
    _ended_long_ago,
    ~exists().where(
        job_dependencies.c.depends_on_job_id == jobs.c.job_id,
        _dependant.c.job_id == job_dependencies.c.job_id,
        _dependant.c.status == literal(JobStatus.PENDING.value, Text, literal_execute=True),
    ),
    ~exists().where(ended_dependencies.c.job_id == jobs.c.job_id),
    ~exists().where(
        job_events.c.job_id == jobs.c.job_id,
        # Not ">": an index of all that is unread shall not seem good for finding what is of one job.
        (tuple_(job_events.c.transaction_id, job_events.c.event_id) <= _place).is_(false()),
    ),
)


def _lie_at(table: str, places: Select[Any]) -> ColumnElement[bool]:
    """The condition that a row is where one of these lies.

    For thousands of keys the planner may read the whole table rather than an index; so it can't.
    """
    return literal_column(f"{table}.ctid") == func.any(func.array(places.scalar_subquery()))


_asked = func.unnest(_job_ids).table_valued("job_id").render_derived("asked")


def _naming(limit: int) -> Any:
    """So many rows at most of those that depend on a job asked for.

    LATERAL: by the index for each job, though one in a portion has so many that the planner takes the table.
    """
    return (
        select(literal_column("job_dependencies.ctid").label("place"))
        .select_from(job_dependencies)
        .where(job_dependencies.c.depends_on_job_id == _asked.c.job_id)
        .limit(literal(limit, Integer, literal_execute=True))
        .lateral("naming")
    )


_all_naming, _one_naming = _naming(DEPENDANTS), _naming(1)
_named: Select[Any] = (
    select(_all_naming.c.place)
    .select_from(_asked.join(_all_naming, true()))
    .limit(literal(DEPENDANTS, Integer, literal_execute=True))
)
_FORGET_DEPENDANTS = delete(job_dependencies).where(_lie_at("job_dependencies", _named))
_STILL_NAMED = select(_asked.c.job_id).select_from(_asked.join(_one_naming, true()))
# Of the queue and the leases what release 0.1.0 left behind when it cancelled.
_DELETE_PARTS = [
    delete(table).where(table.c.job_id == func.any(_job_ids))
    for table in (job_queue, job_leases, job_attempts, job_dependencies)
]
_gone = (
    delete(jobs)
    .where(jobs.c.job_id == func.any(_job_ids))
    .returning(jobs.c.run_type, jobs.c.status)
    .cte("gone")
)
_fewer = (
    select(_gone.c.run_type, _gone.c.status, func.count().label("jobs"))
    .group_by(_gone.c.run_type, _gone.c.status)
    .subquery("fewer")
)
_DELETE = (
    update(job_counts)
    .where(job_counts.c.run_type == _fewer.c.run_type, job_counts.c.status == _fewer.c.status)
    .values(jobs=job_counts.c.jobs - _fewer.c.jobs)
)

_oldest = (
    select(
        literal_column("job_events.ctid").label("place"),
        job_events.c.event_id,
        job_events.c.time,
        job_events.c.transaction_id,
    )
    .where(job_events.c.event_id > bindparam("after", type_=BigInteger))
    .order_by(job_events.c.event_id)
    .limit(literal(EVENTS, Integer, literal_execute=True))
    .cte("oldest")
)
_old_and_read = select(_oldest.c.place).where(
    _oldest.c.time < _long_ago, tuple_(_oldest.c.transaction_id, _oldest.c.event_id) <= _place
)
_going = (
    select(literal_column("job_events.ctid").label("place"))
    .select_from(job_events)
    .where(_lie_at("job_events", _old_and_read))
    .with_for_update(skip_locked=True)
    .cte("going")
)
_deleted = (
    delete(job_events)
    .where(_lie_at("job_events", select(_going.c.place)))
    .returning(job_events.c.event_id)
    .cte("deleted")
)
_DELETE_EVENTS = select(
    select(func.count()).select_from(_oldest).scalar_subquery().label("looked_at"),
    func.count().label("deleted"),
    func.coalesce(func.max(_deleted.c.event_id), 0).label("last"),
).select_from(_deleted)


class Retention:
    """Deletes what is old. Ages are measured by the database's clock."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def aged(self, age: timedelta, after: Aged) -> list[Aged]:
        """Return the next JOBS jobs at most that ended so long ago, oldest first. Locks nothing."""
        parameters = {"age": age, "end_time": after.end_time, "job_id": after.job_id}
        return [Aged(row.end_time, row.job_id) for row in self._connection.execute(_AGED, parameters)]

    def lock(self, job_ids: Collection[UUID]) -> list[UUID]:
        """Lock these jobs in the order of their ids; one that somebody else has is left out."""
        return list(self._connection.execute(_LOCK, {"job_ids": sorted(job_ids)}).scalars())

    def free(self, job_ids: Collection[UUID], age: timedelta, place: Place) -> dict[UUID, JobStatus]:
        """Return those of these jobs that may go, with their status.

        They ended so long ago, no PENDING job waits for them, nobody is still to be told of their end, and
        all their history is counted: it is read up to this place. True for as long as they are locked, if
        they were before.
        """
        parameters = {"job_ids": list(job_ids), "age": age, **place.parameters()}
        return {row.job_id: JobStatus(row.status) for row in self._connection.execute(_FREE, parameters)}

    def forget_dependants(self, job_ids: Collection[UUID]) -> set[UUID]:
        """Delete who depends on these jobs, DEPENDANTS rows at most; returns the jobs that have some left."""
        parameters = {"job_ids": list(job_ids)}
        if self._connection.execute(_FORGET_DEPENDANTS, parameters).rowcount < DEPENDANTS:
            return set()
        return set(self._connection.execute(_STILL_NAMED, parameters).scalars())

    def delete(self, job_ids: Collection[UUID]) -> None:
        """Delete these jobs, which must be locked, with their attempts and dependencies, and count them out.

        The reader job_counts must be locked.
        """
        parameters = {"job_ids": list(job_ids)}
        for statement in _DELETE_PARTS:
            self._connection.execute(statement, parameters)
        self._connection.execute(_DELETE, parameters)

    def delete_events(self, age: timedelta, after: int, place: Place) -> DeletedEvents:
        """Of the next events after this id delete those that are so old and read up to this place.

        What another process deletes at the same time is left to it.
        """
        parameters = {"age": age, "after": after, **place.parameters()}
        row = self._connection.execute(_DELETE_EVENTS, parameters).one()
        return DeletedEvents(row.looked_at, row.deleted, row.last)
