"""The end of claims: the job changed, its lease gone, the attempt written down, in one statement."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Connection,
    Double,
    Integer,
    Interval,
    Row,
    Select,
    Text,
    Uuid,
    bindparam,
    case,
    delete,
    false,
    func,
    literal_column,
    null,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert

from jobs_service.model.endings import Ending, HeldJob
from jobs_service.model.job import AttemptOutcome, JobStatus, RunType
from jobs_service.model.retry import RetryPolicy
from jobs_service.storage.queue_tables import job_attempts, job_leases
from jobs_service.storage.recordset import recordset, rows
from jobs_service.storage.tables import jobs


@dataclass(frozen=True, slots=True)
class Takeable:
    """Jobs that are locked. held: those that a claim has; rest: those whose claim has ended already."""

    held: dict[UUID, HeldJob]
    rest: frozenset[UUID]


@dataclass(frozen=True, slots=True)
class Ended:
    """When a claim ended (database's clock), and whether it had a place of a limited data set."""

    time: datetime
    limited: bool


@dataclass(frozen=True, slots=True)
class Revoked:
    """The jobs that had a worker, and the limited data sets in which they had a place."""

    job_ids: frozenset[UUID]
    limited: frozenset[int]


_is_running = jobs.c.status == JobStatus.RUNNING.value
_HELD: tuple[ColumnElement[Any], ...] = (
    jobs.c.job_id,
    jobs.c.run_type,
    jobs.c.dataset_id,
    jobs.c.lease_token,
    jobs.c.attempt,
    jobs.c.max_attempts,
    jobs.c.releases,
    jobs.c.retry_initial,
    jobs.c.retry_max,
    jobs.c.retry_multiplier,
)
_claim = recordset("claim", {"job_id": Uuid(), "lease_token": Uuid()})
_own = (jobs.c.job_id == _claim.c.job_id) & (jobs.c.lease_token == _claim.c.lease_token)
# A row that was waited for is looked at again as its last writer left it: the token may be gone by then.
_HOLD = (
    select(*_HELD)
    .select_from(_claim.join(jobs, _own))
    .where(_is_running)
    .order_by(jobs.c.job_id)
    .with_for_update(of=jobs)
)
_HOLD_FREE = _HOLD.with_for_update(of=jobs, skip_locked=True)
_job_ids = bindparam("job_ids", type_=ARRAY(Uuid))
_TAKE: Select[Any] = (
    select(*_HELD, _is_running.label("is_running"))
    .where(jobs.c.job_id == func.any(_job_ids))
    .order_by(jobs.c.job_id)
    .with_for_update(skip_locked=True)
)

_ended = recordset(
    "ended",
    {
        "job_id": Uuid(),
        "lease_token": Uuid(),
        "status": Text(),
        "outcome": Text(),
        "number": Integer(),
        "attempt": Integer(),
        "releases": Integer(),
        "delay": Double(),
        "error_type": Text(),
        "error_message": Text(),
        "error_retryable": Boolean(),
        "output_summary": JSONB(),
        "output_commit_id": Text(),
        "summary_bytes": Integer(),
    },
)
_again = _ended.c.status == JobStatus.PENDING.value
_failed = _ended.c.status == JobStatus.FAILED.value
# As in job_store: not the start of the transaction, and never earlier than what is there.
_moment = func.greatest(func.statement_timestamp(), jobs.c.update_time)
_second = literal_column("interval '1 second'", Interval())
_written = (
    update(jobs)
    .where(jobs.c.job_id == _ended.c.job_id, jobs.c.lease_token == _ended.c.lease_token, _is_running)
    .values(
        status=_ended.c.status,
        attempt=_ended.c.attempt,
        releases=_ended.c.releases,
        version=jobs.c.version + 1,
        update_time=_moment,
        end_time=case((_again, null()), else_=_moment),
        available_time=case((_again, _moment + _ended.c.delay * _second), else_=jobs.c.available_time),
        lease_token=None,
        error_type=case((_failed, _ended.c.error_type)),
        error_message=case((_failed, _ended.c.error_message)),
        error_retryable=case((_failed, _ended.c.error_retryable)),
        output_summary=_ended.c.output_summary,
        output_commit_id=_ended.c.output_commit_id,
        payload_bytes=jobs.c.payload_bytes + _ended.c.summary_bytes,
    )
    .returning(
        jobs.c.job_id,
        jobs.c.update_time,
        _ended.c.number,
        _ended.c.outcome,
        _ended.c.error_type,
        _ended.c.error_message,
        _ended.c.error_retryable,
        _again.label("will_retry"),
    )
    .cte("written")
)
_LEASE = (
    job_leases.c.job_id,
    job_leases.c.claim,
    job_leases.c.attempt,
    job_leases.c.lease_token,
    job_leases.c.worker_id,
    job_leases.c.start_time,
)
_closed = (
    delete(job_leases)
    .where(job_leases.c.job_id == _written.c.job_id)
    .returning(*_LEASE, job_leases.c.limited)
    .cte("closed")
)
_ATTEMPT = (
    "job_id",
    "claim",
    "number",
    "lease_token",
    "worker_id",
    "start_time",
    "end_time",
    "outcome",
    "error_type",
    "error_message",
    "error_retryable",
    "will_retry",
)
_noted = (
    insert(job_attempts)
    .from_select(
        _ATTEMPT,
        select(
            _closed.c.job_id,
            _closed.c.claim,
            _written.c.number,
            _closed.c.lease_token,
            _closed.c.worker_id,
            _closed.c.start_time,
            _written.c.update_time,
            _written.c.outcome,
            _written.c.error_type,
            _written.c.error_message,
            _written.c.error_retryable,
            _written.c.will_retry,
        ).select_from(_closed.join(_written, _closed.c.job_id == _written.c.job_id)),
    )
    .cte("noted")
)
_END = (
    select(_written.c.job_id, _written.c.update_time, _closed.c.limited)
    .select_from(_written.join(_closed, _closed.c.job_id == _written.c.job_id))
    .add_cte(_noted)
)

# In the order in which heartbeats lock them, whatever the plan.
_to_revoke = (
    select(job_leases.c.job_id)
    .where(job_leases.c.job_id == func.any(_job_ids))
    .order_by(job_leases.c.job_id)
    .with_for_update()
    .cte("to_revoke")
    .prefix_with("MATERIALIZED")
)
_revoked = (
    delete(job_leases)
    # The ids twice: a join alone might read all leases.
    .where(job_leases.c.job_id == func.any(_job_ids), job_leases.c.job_id == _to_revoke.c.job_id)
    .returning(*_LEASE, job_leases.c.limited, job_leases.c.dataset_id)
    .cte("revoked")
)
_kept = insert(job_attempts).from_select(
    _ATTEMPT,
    select(
        _revoked.c.job_id,
        _revoked.c.claim,
        _revoked.c.attempt,
        _revoked.c.lease_token,
        _revoked.c.worker_id,
        _revoked.c.start_time,
        func.coalesce(jobs.c.end_time, func.statement_timestamp()),
        literal_column(f"'{AttemptOutcome.CANCELLED.value}'", Text()),
        null(),
        null(),
        null(),
        false(),
    ).select_from(_revoked.join(jobs, jobs.c.job_id == _revoked.c.job_id)),
)
_REVOKE = select(_revoked.c.job_id, _revoked.c.dataset_id, _revoked.c.limited).add_cte(_kept.cte("kept"))


class EndingStore:
    """How claims end, in jobs, job_leases and job_attempts together."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def hold(self, tokens: Mapping[UUID, Collection[UUID]], *, wait: bool) -> dict[UUID, HeldJob]:
        """Lock, in the order of their ids, the jobs that a claim with one of these tokens has.

        tokens: by job id. Left out is what is not RUNNING or has another token; nobody waits for those.
        wait: for a job that another transaction holds, which raises RowLocked after the lock limit; else
        it is left out.
        """
        claims = [{"job_id": job_id, "lease_token": token} for job_id in tokens for token in tokens[job_id]]
        found = self._connection.execute(_HOLD if wait else _HOLD_FREE, rows(claims))
        return {row.job_id: _held_of(row) for row in found}

    def take(self, job_ids: Collection[UUID]) -> Takeable:
        """Lock, in the order of their ids, those of these jobs that nobody else holds."""
        found = self._connection.execute(_TAKE, {"job_ids": sorted(job_ids)}).all()
        return Takeable(
            held={row.job_id: _held_of(row) for row in found if row.is_running and row.lease_token},
            rest=frozenset(row.job_id for row in found if not (row.is_running and row.lease_token)),
        )

    def end(self, endings: Sequence[Ending]) -> dict[UUID, Ended]:
        """Write how these claims ended, of jobs that are held, each given once; by job id."""
        # In the order in which heartbeats lock leases, or the two would wait for each other.
        in_order = sorted(endings, key=lambda ending: ending.job.job_id)
        found = self._connection.execute(_END, rows(_record(ending) for ending in in_order))
        return {row.job_id: Ended(row.update_time, row.limited) for row in found}

    def revoke(self, job_ids: Collection[UUID]) -> Revoked:
        """Take these jobs, which are locked and CANCELLED, from their workers, where they have any."""
        if not job_ids:
            return Revoked(frozenset(), frozenset())
        found = self._connection.execute(_REVOKE, {"job_ids": sorted(job_ids)}).all()
        return Revoked(
            frozenset(row.job_id for row in found),
            frozenset(row.dataset_id for row in found if row.limited),
        )


def _held_of(row: Row[Any]) -> HeldJob:
    return HeldJob(
        job_id=row.job_id,
        run_type=RunType(row.run_type),
        dataset_id=row.dataset_id,
        lease_token=row.lease_token,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        releases=row.releases,
        retry_policy=_policy_of(row),
    )


def _policy_of(row: Row[Any]) -> RetryPolicy:
    default = RetryPolicy()
    return RetryPolicy(
        initial=default.initial if row.retry_initial is None else row.retry_initial,
        longest=default.longest if row.retry_max is None else row.retry_max,
        multiplier=default.multiplier if row.retry_multiplier is None else row.retry_multiplier,
    )


def _record(ending: Ending) -> dict[str, object]:
    error, done = ending.error, ending.completion
    return {
        "job_id": ending.job.job_id,
        "lease_token": ending.job.lease_token,
        "status": ending.status,
        "outcome": ending.outcome,
        "number": ending.job.attempt,
        "attempt": ending.attempt,
        "releases": ending.releases,
        "delay": ending.delay.total_seconds(),
        "error_type": error.type if error else None,
        "error_message": error.message if error else None,
        "error_retryable": error.retryable if error else None,
        "output_summary": done.output_summary if done else None,
        "output_commit_id": done.output_commit_id if done else None,
        "summary_bytes": done.summary_bytes if done and done.output_summary is not None else 0,
    }
