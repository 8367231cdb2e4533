"""Jobs, one or many by id: insert, find, lock, cancel."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    Text,
    Uuid,
    bindparam,
    cast,
    func,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from jobs_service.model.caller import Role, Standing
from jobs_service.model.job import Job, JobStatus, JobView
from jobs_service.model.requests import GetRequest
from jobs_service.storage.access_store import level_named, level_of, role_named, role_of, sees
from jobs_service.storage.job_insert import INSERT, InsertedJob, JobInsert, insert_record
from jobs_service.storage.job_rows import COLUMNS, job_of
from jobs_service.storage.recordset import recordset, rows
from jobs_service.storage.tables import jobs


@dataclass(frozen=True, slots=True)
class FoundJob:
    """A job as read and how the asking caller stands to it. job is None where the caller sees none."""

    job: Job | None
    standing: Standing


@dataclass(frozen=True, slots=True)
class LockedJobs:
    """Jobs as read, and the ids of those that are locked."""

    jobs: dict[UUID, Job]
    locked: frozenset[UUID]


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What makes a request_id unique."""

    owner_id: int
    creator_id: int
    request_id: UUID


@dataclass(frozen=True, slots=True)
class EarlierJob:
    """The job that a request_id made, and the hash of the request that made it."""

    job: Job
    request_hash: bytes


_key = recordset(
    "key", {"n": Integer(), "owner_id": BigInteger(), "creator_id": BigInteger(), "request_id": Uuid()}
)
_BY_REQUEST_ID = select(
    _key.c.n,
    jobs.c.request_hash,
    # A job can be visible that the synchronous standby does not have: its commit's wait was cut short.
    # COMMIT of what has written something waits for all that came before, and this writes a log record
    # that nobody reads.
    select(func.pg_logical_emit_message(true(), "jobs", cast("", Text))).scalar_subquery(),
    *COLUMNS[JobView.FULL],
).select_from(
    _key.join(
        jobs,
        (jobs.c.owner_id == _key.c.owner_id)
        & (jobs.c.creator_id == _key.c.creator_id)
        & (jobs.c.request_id == _key.c.request_id),
    )
)

_asked = recordset(
    "asked",
    {"n": Integer(), "job_id": Uuid(), "caller_id": BigInteger(), "subject_id": BigInteger()},
)
_may_ask = or_(
    _asked.c.caller_id == _asked.c.subject_id,
    (role_of(_asked.c.caller_id) != Role.USER.value) & (role_of(_asked.c.subject_id) == Role.USER.value),
)
# What the asker will not be shown is not read either: a large payload would tell by its time that it exists.
_visible = _may_ask & sees(_asked.c.subject_id, jobs)
_FIND = {
    view: select(
        role_of(_asked.c.caller_id).label("caller_role"),
        role_of(_asked.c.subject_id).label("subject_role"),
        level_of(_asked.c.subject_id, jobs.c.dataset_id).label("level"),
        *columns,
    )
    .select_from(_asked.outerjoin(jobs, (jobs.c.job_id == _asked.c.job_id) & _visible))
    .order_by(_asked.c.n)
    for view, columns in COLUMNS.items()
}

_job_ids = bindparam("job_ids", type_=ARRAY(Uuid))
# The order of the locks is the same everywhere: multi-row writes go by job_id.
_LOCK = (
    select(jobs.c.job_id).where(jobs.c.job_id == func.any(_job_ids)).order_by(jobs.c.job_id).with_for_update()
)
_LOCK_FREE = _LOCK.with_for_update(skip_locked=True)
_BY_ID = {
    view: select(*columns).where(jobs.c.job_id == func.any(_job_ids)) for view, columns in COLUMNS.items()
}

_cancel = recordset("cancel", {"job_id": Uuid(), "soeid": Text(), "reason": Text()})
# Not now(): that is when the transaction began, before it waited for the lock. And never earlier
# than what is there, should the clock of a new primary be behind.
_moment = func.greatest(func.statement_timestamp(), jobs.c.update_time)
_CANCEL = (
    update(jobs)
    .where(jobs.c.job_id == _cancel.c.job_id, jobs.c.end_time.is_(None))
    .values(
        status=JobStatus.CANCELLED.value,
        end_time=_moment,
        update_time=_moment,
        version=jobs.c.version + 1,
        cancelled_by_soeid=_cancel.c.soeid,
        cancel_reason=_cancel.c.reason,
        lease_token=None,
    )
    .returning(jobs.c.job_id, jobs.c.end_time, jobs.c.version)
)


class JobStore:
    """The jobs table, one or many rows by their ids."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def insert(self, inserts: Sequence[JobInsert]) -> dict[UUID, InsertedJob]:
        """Insert jobs, and queue those that wait for no other; returns those that were inserted.

        Left out is who has a request id that is taken already, by a row that is committed or by an
        earlier one of this batch; a row whose transaction still runs is waited for.
        """
        records = [insert_record(item) for item in inserts]
        created = self._connection.execute(INSERT, rows(records))
        return {row.job_id: InsertedJob(row.create_time, row.claimable, row.held) for row in created}

    def by_request_ids(self, keys: Sequence[RequestKey]) -> dict[RequestKey, EarlierJob]:
        """Return the jobs that these request ids made, as they are now; unknown ids are left out.

        A statement of its own after insert: within the insert's snapshot the winner is not visible.
        """
        records = [
            {"n": n, "owner_id": key.owner_id, "creator_id": key.creator_id, "request_id": key.request_id}
            for n, key in enumerate(keys)
        ]
        found = self._connection.execute(_BY_REQUEST_ID, rows(records))
        return {keys[row.n]: EarlierJob(job_of(row), bytes(row.request_hash)) for row in found}

    def find(self, requests: Sequence[GetRequest], view: JobView) -> list[FoundJob]:
        """Answer each request in the order asked, in one statement; a job may be asked for twice.

        A job that the asker may surely not see is left out like one that is not there.
        """
        asked = [
            {
                "n": n,
                "job_id": request.job_id,
                "caller_id": request.caller.user_id,
                "subject_id": request.caller.subject_id,
            }
            for n, request in enumerate(requests)
        ]
        return [
            FoundJob(
                job=None if row.job_id is None else job_of(row),
                standing=Standing(
                    caller_role=role_named(row.caller_role),
                    subject_role=role_named(row.subject_role),
                    level=level_named(row.level),
                ),
            )
            for row in self._connection.execute(_FIND[view], rows(asked))
        ]

    def lock(self, job_ids: Collection[UUID], view: JobView = JobView.FULL, *, wait: bool) -> LockedJobs:
        """Lock these jobs in the order of their ids and return them as they then are.

        Unknown ids are left out. wait: for a job that another transaction holds, which raises
        RowLocked after the lock limit; else that job is only read.
        """
        parameters = {"job_ids": sorted(set(job_ids))}
        locked = self._connection.execute(_LOCK if wait else _LOCK_FREE, parameters).scalars()
        locked_ids = frozenset(locked)
        # Read after the locks: a row that was waited for is seen as its last writer left it.
        return LockedJobs(self.read(job_ids, view), locked_ids)

    def read(self, job_ids: Collection[UUID], view: JobView) -> dict[UUID, Job]:
        """Return these jobs as they are now; unknown ids are left out."""
        found = self._connection.execute(_BY_ID[view], {"job_ids": sorted(set(job_ids))})
        return {row.job_id: job_of(row) for row in found}

    def cancel(
        self, cancellations: Mapping[UUID, tuple[str, str | None]]
    ) -> dict[UUID, tuple[datetime, int]]:
        """Cancel jobs that are locked and not terminal; by whom (SOEID) and why, by job id.

        Returns end_time and version of each.
        """
        records = [
            {"job_id": job_id, "soeid": soeid, "reason": reason}
            for job_id, (soeid, reason) in cancellations.items()
        ]
        cancelled = self._connection.execute(_CANCEL, rows(records))
        return {row.job_id: (row.end_time, row.version) for row in cancelled}
