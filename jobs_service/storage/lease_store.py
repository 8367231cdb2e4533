"""Leases: renewed by heartbeats, looked for by the sweep, and what became of those that are gone."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Connection,
    DateTime,
    Double,
    Integer,
    Interval,
    Row,
    Uuid,
    bindparam,
    func,
    literal_column,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from jobs_service.model.endings import Overdue
from jobs_service.model.job import AttemptOutcome, JobStatus, JsonObject, RunType
from jobs_service.storage.queue_tables import job_attempts, job_leases
from jobs_service.storage.recordset import recordset, rows
from jobs_service.storage.tables import jobs


@dataclass(frozen=True, slots=True)
class Token:
    """What a worker proves with: of which job, and which claim of it."""

    job_id: UUID
    lease_token: UUID


@dataclass(frozen=True, slots=True)
class EndedClaim:
    """How the claim that a token is of has ended. is_last: no later one has begun since."""

    outcome: AttemptOutcome
    error_type: str | None
    will_retry: bool
    is_last: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """How a token stands to its job.

    is_current: the job has it now; it is RUNNING then, or an older release has cancelled it.
    lease_expire_time: of the lease, if it is still there. ended: None, the token ended no claim of the job.
    """

    status: JobStatus
    attempt: int
    run_type: RunType
    is_current: bool
    lease_expire_time: datetime | None
    ended: EndedClaim | None


_is_running = jobs.c.status == JobStatus.RUNNING.value
_renewed = recordset("renewed", {"job_id": Uuid(), "lease_token": Uuid(), "seconds": Double()})
_second = literal_column("interval '1 second'", Interval())
_job_ids = bindparam("job_ids", type_=ARRAY(Uuid))
_tokens = bindparam("tokens", type_=ARRAY(Uuid))
_status_of_leased = select(jobs.c.status).where(jobs.c.job_id == job_leases.c.job_id).scalar_subquery()


def _renewal(*, skip_locked: bool) -> Any:
    # By ids: joined to a batch, which the planner takes for 100 rows, it may read all leases.
    locked = (
        select(job_leases.c.job_id, job_leases.c.lease_token)
        .where(
            job_leases.c.job_id == func.any(_job_ids),
            job_leases.c.lease_token == func.any(_tokens),
            # An older release cancels a job and leaves its lease.
            _status_of_leased == JobStatus.RUNNING.value,
        )
        # One order everywhere.
        .order_by(job_leases.c.job_id)
        .with_for_update(of=job_leases, skip_locked=skip_locked)
        .cte("locked")
    )
    duration = _renewed.c.seconds * _second
    # clock_timestamp: the lock may have been waited for, and what is promised begins now.
    expiry = func.clock_timestamp() + duration
    return (
        update(job_leases)
        .where(
            job_leases.c.job_id == func.any(_job_ids),
            job_leases.c.job_id == locked.c.job_id,
            locked.c.job_id == _renewed.c.job_id,
            locked.c.lease_token == _renewed.c.lease_token,
        )
        .values(
            lease_duration=duration,
            lease_expire_time=func.least(expiry, job_leases.c.run_deadline),
        )
        .returning(job_leases.c.job_id, job_leases.c.lease_token, job_leases.c.lease_expire_time)
    )


_RENEW = _renewal(skip_locked=False)
_RENEW_FREE = _renewal(skip_locked=True)

_report = recordset("report", {"job_id": Uuid(), "lease_token": Uuid(), "progress": JSONB()})
_reported = (
    select(jobs.c.job_id, _report.c.progress)
    .select_from(
        _report.join(
            jobs, (jobs.c.job_id == _report.c.job_id) & (jobs.c.lease_token == _report.c.lease_token)
        )
    )
    .where(_is_running, jobs.c.progress.is_distinct_from(_report.c.progress))
    .order_by(jobs.c.job_id)
    .with_for_update(of=jobs, skip_locked=True)
    .cte("reported")
)
_REPORT = (
    update(jobs)
    .where(jobs.c.job_id == _reported.c.job_id)
    .values(
        progress=_reported.c.progress,
        version=jobs.c.version + 1,
        update_time=func.greatest(func.statement_timestamp(), jobs.c.update_time),
    )
)

_asked = recordset("asked", {"n": Integer(), "job_id": Uuid(), "lease_token": Uuid()})
# LATERAL: looked up for each token, whatever the planner takes a batch for.
_attempt = (
    select(
        job_attempts.c.claim,
        job_attempts.c.outcome,
        job_attempts.c.error_type,
        job_attempts.c.will_retry,
    )
    .where(job_attempts.c.job_id == _asked.c.job_id, job_attempts.c.lease_token == _asked.c.lease_token)
    .limit(1)
    .lateral("attempt")
)
_lease = (
    select(job_leases.c.lease_expire_time)
    .where(job_leases.c.job_id == _asked.c.job_id, job_leases.c.lease_token == _asked.c.lease_token)
    .limit(1)
    .lateral("lease")
)
_STANDINGS = select(
    _asked.c.n,
    jobs.c.status,
    jobs.c.attempt,
    jobs.c.run_type,
    (jobs.c.lease_token == _asked.c.lease_token).label("is_current"),
    (jobs.c.claims == _attempt.c.claim).label("is_last"),
    _attempt.c.outcome,
    _attempt.c.error_type,
    _attempt.c.will_retry,
    _lease.c.lease_expire_time,
).select_from(
    _asked.join(jobs, jobs.c.job_id == _asked.c.job_id).outerjoin(_attempt, true()).outerjoin(_lease, true())
)

_NOW = select(func.statement_timestamp())
_calm_since = func.greatest(
    func.pg_postmaster_start_time(), bindparam("since", type_=DateTime(timezone=True))
)
# No lease lasts longer than its job may run, whatever was asked for.
_lasts = func.least(job_leases.c.lease_duration, job_leases.c.run_deadline - job_leases.c.start_time)
# Who could send no heartbeat for want of a service or a database has a lease's time to come back.
_is_overdue = (job_leases.c.lease_expire_time <= func.statement_timestamp()) & (
    _lasts <= func.statement_timestamp() - _calm_since
)
# Passes over all that have expired and are not to be taken back yet: one for each running job at most, and
# only until a lease's time is over after a start. 20,000 of them take about 20 ms.
_CANDIDATES = (
    select(job_leases.c.job_id)
    .where(_is_overdue)
    .order_by(job_leases.c.lease_expire_time)
    .limit(bindparam("limit", type_=Integer))
)
_timed_out = job_leases.c.lease_expire_time >= job_leases.c.run_deadline
_LOCK_OVERDUE = (
    select(
        job_leases.c.job_id,
        job_leases.c.worker_id,
        _timed_out.label("timed_out"),
        func.extract("epoch", job_leases.c.lease_duration).label("lease_seconds"),
        func.extract("epoch", job_leases.c.run_deadline - job_leases.c.start_time).label("run_seconds"),
    )
    .where(job_leases.c.job_id == func.any(_job_ids), _is_overdue)
    .order_by(job_leases.c.job_id)
    .with_for_update(skip_locked=True)
)


class LeaseStore:
    """The job_leases table, and what job_attempts says of leases that are gone."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def report(self, progress: Sequence[tuple[Token, JsonObject]]) -> None:
        """Note the progress of jobs, each given once, that have these tokens, where it is new.

        What another transaction holds is left as it is: the next report comes soon.
        """
        records = [
            {"job_id": token.job_id, "lease_token": token.lease_token, "progress": value}
            for token, value in progress
        ]
        self._connection.execute(_REPORT, rows(records))

    def renew(self, leases: Sequence[tuple[Token, timedelta]], *, wait: bool) -> dict[Token, datetime]:
        """Renew these leases, each given once, in the order of their jobs; returns when they expire now.

        Left out are those that are gone, or whose job is no longer RUNNING. wait: for one that another
        transaction holds, which raises RowLocked after the lock limit; else it is left out too.
        """
        records = [
            {"job_id": token.job_id, "lease_token": token.lease_token, "seconds": duration.total_seconds()}
            for token, duration in leases
        ]
        parameters = {
            "job_ids": sorted({token.job_id for token, _ in leases}),
            "tokens": [token.lease_token for token, _ in leases],
        }
        found = self._connection.execute(_RENEW if wait else _RENEW_FREE, parameters | rows(records))
        return {Token(row.job_id, row.lease_token): row.lease_expire_time for row in found}

    def standings(self, tokens: Sequence[Token]) -> list[Standing | None]:
        """Say how each token stands to its job, in the order asked; None: there is no such job."""
        asked = [
            {"n": n, "job_id": token.job_id, "lease_token": token.lease_token}
            for n, token in enumerate(tokens)
        ]
        found = {row.n: _standing_of(row) for row in self._connection.execute(_STANDINGS, rows(asked))}
        return [found.get(n) for n in range(len(tokens))]

    def now(self) -> datetime:
        """Return the database's time."""
        found: datetime = self._connection.execute(_NOW).scalar_one()
        return found

    def candidates(self, *, since: datetime, limit: int) -> list[UUID]:
        """Return jobs whose leases have expired, the oldest first; nothing is locked.

        Left out is a lease that lasts longer than since that time, or than the server has been up.
        """
        parameters = {"since": since, "limit": limit}
        return list(self._connection.execute(_CANDIDATES, parameters).scalars())

    def lock_overdue(self, job_ids: Collection[UUID], *, since: datetime) -> dict[UUID, Overdue]:
        """Lock those leases of these jobs that are (still) expired and that nobody else holds."""
        parameters = {"job_ids": sorted(job_ids), "since": since}
        return {
            row.job_id: Overdue(
                row.worker_id,
                row.timed_out,
                float(row.run_seconds if row.timed_out else row.lease_seconds),
            )
            for row in self._connection.execute(_LOCK_OVERDUE, parameters)
        }


def _standing_of(row: Row[Any]) -> Standing:
    ended = None
    if row.outcome is not None:
        ended = EndedClaim(AttemptOutcome(row.outcome), row.error_type, row.will_retry, row.is_last)
    return Standing(
        status=JobStatus(row.status),
        attempt=row.attempt,
        run_type=RunType(row.run_type),
        is_current=bool(row.is_current),
        lease_expire_time=row.lease_expire_time,
        ended=ended,
    )
