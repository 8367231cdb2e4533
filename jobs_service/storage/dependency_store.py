"""What waits for what: the dependencies of a job that is created, and the dependants of one that ends."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    Select,
    Uuid,
    bindparam,
    case,
    column,
    delete,
    func,
    literal,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert

from jobs_service.model.job import JobStatus, RunType
from jobs_service.storage.access_store import sees
from jobs_service.storage.queue_tables import ended_dependencies, job_dependencies, job_queue
from jobs_service.storage.recordset import recordset, rows
from jobs_service.storage.tables import jobs

FIRST = UUID(int=0)
"""The cursor before every job."""
_LAST = UUID(int=2**128 - 1)
PICKED = 20
"""Ended jobs whose dependants are told in one transaction of upkeep."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that has ended, and which of its dependants was told last."""

    job_id: UUID
    after: UUID = FIRST


@dataclass(frozen=True, slots=True)
class Dependant:
    """A job that waits, or has waited, for one that has ended so."""

    job_id: UUID
    ended_id: UUID
    ended_as: JobStatus


@dataclass(frozen=True, slots=True)
class LockedDependant:
    """A dependant under its lock."""

    status: JobStatus
    run_type: RunType
    dataset_id: int
    keep_waiting: bool


_asked = recordset("asked", {"subject_id": BigInteger(), "job_id": Uuid()})
_VISIBLE = select(_asked.c.subject_id, jobs.c.job_id, jobs.c.status).select_from(
    _asked.join(jobs, (jobs.c.job_id == _asked.c.job_id) & sees(_asked.c.subject_id, jobs))
)

_job_ids = bindparam("job_ids", type_=ARRAY(Uuid))
# Whoever ends one of these waits for the new dependant, or is waited for: one sees the other.
_SHARE = (
    select(jobs.c.job_id, jobs.c.status)
    .where(jobs.c.job_id == func.any(_job_ids))
    .order_by(jobs.c.job_id)
    .with_for_update(read=True)
)
_SHARE_FREE = _SHARE.with_for_update(read=True, skip_locked=True)
_LOCK_FREE = (
    select(jobs.c.job_id, jobs.c.status, jobs.c.run_type, jobs.c.dataset_id, jobs.c.keep_waiting)
    .where(jobs.c.job_id == func.any(_job_ids))
    .order_by(jobs.c.job_id)
    .with_for_update(skip_locked=True)
)
_EXISTING = select(jobs.c.job_id).where(jobs.c.job_id == func.any(_job_ids))

_new = recordset("new", {"job_id": Uuid(), "depends_on_job_id": Uuid()})
_INSERT = insert(job_dependencies).from_select(["job_id", "depends_on_job_id"], select(_new))

_dependency = jobs.alias("dependency")


def _unfinished(job_id: ColumnElement[UUID]) -> Select[UUID]:
    """The dependencies of this job that are not COMPLETED; nothing says that one which is gone was."""
    ids = job_dependencies.outerjoin(
        _dependency, _dependency.c.job_id == job_dependencies.c.depends_on_job_id
    )
    return (
        select(job_dependencies.c.depends_on_job_id)
        .select_from(ids)
        .where(
            job_dependencies.c.job_id == job_id,
            _dependency.c.status.is_distinct_from(JobStatus.COMPLETED.value),
        )
    )


def waiting_on(job_id: ColumnElement[UUID]) -> ColumnElement[list[UUID]]:
    """Return the expression of the dependencies of this job that are not COMPLETED, in the order of ids."""
    ordered = _unfinished(job_id).order_by(job_dependencies.c.depends_on_job_id)
    return func.array(ordered.scalar_subquery(), type_=ARRAY(Uuid))


_UNFINISHED = (
    select(job_dependencies.c.job_id, job_dependencies.c.depends_on_job_id, _dependency.c.status)
    .select_from(
        job_dependencies.outerjoin(_dependency, _dependency.c.job_id == job_dependencies.c.depends_on_job_id)
    )
    .where(
        job_dependencies.c.job_id == func.any(_job_ids),
        _dependency.c.status.is_distinct_from(JobStatus.COMPLETED.value),
    )
    .order_by(job_dependencies.c.job_id, job_dependencies.c.depends_on_job_id)
)

_ended = (
    func.unnest(bindparam("ended_ids", type_=ARRAY(Uuid)), bindparam("afters", type_=ARRAY(Uuid)))
    .table_valued(column("job_id", Uuid), column("after_job_id", Uuid))
    .render_derived("ended")
)
_edge = tuple_(job_dependencies.c.depends_on_job_id, job_dependencies.c.job_id)
_of_one = (
    select(job_dependencies.c.job_id)
    # A range of both, and no equality: where nearly all wait for one job, the planner would go through
    # the primary key, in the same order, for each job that nobody waits for.
    .where(
        _edge > tuple_(_ended.c.job_id, _ended.c.after_job_id),
        _edge <= tuple_(_ended.c.job_id, literal(_LAST, Uuid)),
    )
    .order_by(job_dependencies.c.depends_on_job_id, job_dependencies.c.job_id)
    .limit(bindparam("limit", type_=Integer))
    .lateral("dependant")
)
# A lookup by primary key for each that is found: most jobs that end have no dependants at all.
_status = select(jobs.c.status).where(jobs.c.job_id == _ended.c.job_id).scalar_subquery()
_DEPENDANTS = (
    select(_ended.c.job_id.label("ended_id"), _status.label("ended_as"), _of_one.c.job_id)
    .select_from(_ended.join(_of_one, true()))
    .order_by(_ended.c.job_id, _of_one.c.job_id)
)

_told = recordset("told", {"job_id": Uuid(), "completed": Integer()})
# One row each, and no EXISTS: that may be answered by reading the whole queue.
_first_unfinished = _unfinished(_told.c.job_id).limit(literal(1, Integer, literal_execute=True))
_queued = select(job_queue.c.job_id).where(job_queue.c.job_id == _told.c.job_id)
# Who is in the queue is free already, through another dependency that was told before this one.
_is_free = _first_unfinished.scalar_subquery().is_(None) & _queued.scalar_subquery().is_(None)
# Looked at once, and not for each place where it is used.
_told_with = select(_told, _is_free.label("free")).cte("told_with").prefix_with("MATERIALIZED")
# Not now(): that is when the transaction began, before it locked anything.
_moment = func.greatest(func.statement_timestamp(), jobs.c.update_time)
_ADVANCE = (
    update(jobs)
    .where(jobs.c.job_id == _told_with.c.job_id)
    .values(
        version=jobs.c.version + _told_with.c.completed,
        update_time=_moment,
        available_time=case(
            (_told_with.c.free, func.greatest(jobs.c.available_time, _moment)),
            else_=jobs.c.available_time,
        ),
    )
    .returning(jobs.c.job_id, _told_with.c.free)
)

_PICK = (
    select(ended_dependencies.c.job_id, ended_dependencies.c.after_job_id)
    .where(ended_dependencies.c.job_id > bindparam("after", type_=Uuid))
    .order_by(ended_dependencies.c.job_id)
    # Written out, or a plan for any number would sort the whole table.
    .limit(literal(PICKED, Integer, literal_execute=True))
    .with_for_update(skip_locked=True)
)
_left = recordset("left_over", {"job_id": Uuid(), "after_job_id": Uuid()})
_leave = insert(ended_dependencies).from_select(
    ["job_id", "after_job_id"], select(_left).order_by(_left.c.job_id)
)
_LEAVE = _leave.on_conflict_do_update(
    index_elements=[ended_dependencies.c.job_id], set_={"after_job_id": _leave.excluded.after_job_id}
)
_DROP = delete(ended_dependencies).where(ended_dependencies.c.job_id == func.any(_job_ids))


class DependencyStore:
    """The tables job_dependencies and ended_dependencies, and what they say about jobs."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def visible(self, asked: Collection[tuple[int, UUID]]) -> dict[tuple[int, UUID], JobStatus]:
        """Return the status of each of these jobs that the user (first of the pair) may see, by the pair."""
        records = [{"subject_id": subject_id, "job_id": job_id} for subject_id, job_id in asked]
        found = self._connection.execute(_VISIBLE, rows(records))
        return {(row.subject_id, row.job_id): JobStatus(row.status) for row in found}

    def share(self, job_ids: Collection[UUID], *, wait: bool) -> dict[UUID, JobStatus]:
        """Keep these jobs from being changed until the transaction ends; returns the status each then has.

        Locked in the order of their ids. wait: for a job that another transaction holds, which raises
        RowLocked after the lock limit; else that job is left out, as one that does not exist always is.
        """
        parameters = {"job_ids": sorted(job_ids)}
        found = self._connection.execute(_SHARE if wait else _SHARE_FREE, parameters)
        return {row.job_id: JobStatus(row.status) for row in found}

    def insert(self, depends_on: Mapping[UUID, Collection[UUID]]) -> None:
        """Write down what each of these jobs depends on, each once."""
        records = [
            {"job_id": job_id, "depends_on_job_id": each}
            for job_id, dependencies in depends_on.items()
            for each in dependencies
        ]
        if records:
            self._connection.execute(_INSERT, rows(records))

    def unfinished(self, job_ids: Collection[UUID]) -> dict[UUID, dict[UUID, JobStatus | None]]:
        """Return the dependencies of each of these jobs that are not COMPLETED, with their status.

        In the order of ids; None: its row is gone. A job without any is left out.
        """
        result: dict[UUID, dict[UUID, JobStatus | None]] = {}
        for row in self._connection.execute(_UNFINISHED, {"job_ids": list(job_ids)}):
            status = None if row.status is None else JobStatus(row.status)
            result.setdefault(row.job_id, {})[row.depends_on_job_id] = status
        return result

    def dependants(self, ended: Sequence[Ended], *, limit: int) -> list[Dependant]:
        """Return the next dependants of each, limit of each, in the order of both ids; locks nothing."""
        parameters = {
            "ended_ids": [each.job_id for each in ended],
            "afters": [each.after for each in ended],
            "limit": limit,
        }
        found = self._connection.execute(_DEPENDANTS, parameters)
        return [Dependant(row.job_id, row.ended_id, JobStatus(row.ended_as)) for row in found]

    def lock_free(self, job_ids: Collection[UUID]) -> dict[UUID, LockedDependant]:
        """Lock those of these jobs that nobody holds; never waits."""
        found = self._connection.execute(_LOCK_FREE, {"job_ids": sorted(job_ids)})
        return {
            row.job_id: LockedDependant(
                JobStatus(row.status), RunType(row.run_type), row.dataset_id, row.keep_waiting
            )
            for row in found
        }

    def existing(self, job_ids: Collection[UUID]) -> set[UUID]:
        """Return those of these jobs that there are."""
        return set(self._connection.execute(_EXISTING, {"job_ids": list(job_ids)}).scalars())

    def advance(self, completed: Mapping[UUID, int]) -> list[UUID]:
        """Let the version of these jobs, which are locked, grow by as many dependencies as have completed.

        Returns those that wait for no other job any more and are not in the queue; they are available from
        now on at the earliest.
        """
        records = [{"job_id": job_id, "completed": count} for job_id, count in completed.items()]
        advanced = self._connection.execute(_ADVANCE, rows(records))
        return sorted(row.job_id for row in advanced if row.free)

    def pick(self, *, after: UUID) -> list[Ended]:
        """Lock the next PICKED jobs whose dependants are still to be told, but none that others hold."""
        found = self._connection.execute(_PICK, {"after": after})
        return [Ended(row.job_id, row.after_job_id or FIRST) for row in found]

    def leave(self, ended: Sequence[Ended]) -> None:
        """Note that these have dependants to be told, and from where on."""
        records = [
            {"job_id": each.job_id, "after_job_id": None if each.after == FIRST else each.after}
            for each in ended
        ]
        self._connection.execute(_LEAVE, rows(records))

    def drop(self, job_ids: Collection[UUID]) -> None:
        """Note that no dependant of these is to be told any more."""
        self._connection.execute(_DROP, {"job_ids": sorted(job_ids)})
