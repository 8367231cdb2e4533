"""Cancelling jobs that are locked, with their history: for CancelJob, and for what cancels jobs by itself."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from jobs_service.core.end_claims import follow_up
from jobs_service.model.caller import Caller
from jobs_service.model.job import AttemptOutcome, Job, JobStatus
from jobs_service.model.states import EventType
from jobs_service.storage.database import Transaction
from jobs_service.storage.event_store import Event


@dataclass(frozen=True, slots=True)
class Cancellation:
    """A job to cancel, as it was read under its lock: by whom and why."""

    job: Job
    by: Caller
    reason: str | None


def cancel_locked(tx: Transaction, cancellations: Sequence[Cancellation], *, wait: bool) -> list[Job]:
    """Cancel jobs that are locked and PENDING or RUNNING, each given once; returns them as they are then.

    wait: for who fills the same places, see end_claims.follow_up.
    """
    if not cancellations:
        return []
    moments = tx.jobs.cancel({each.job.job_id: (each.by.soeid, each.reason) for each in cancellations})
    cancelled = [_cancelled(each, *moments[each.job.job_id]) for each in cancellations]
    tx.events.append([_event(each, job) for each, job in zip(cancellations, cancelled, strict=True)])
    job_ids = [each.job.job_id for each in cancellations]
    freed = tx.queue.remove(job_ids)
    revoked = tx.endings.revoke(job_ids)
    follow_up(tx, ended=job_ids, freed=freed | revoked.limited, wait=wait)
    tx.news.revoked |= revoked.job_ids
    return cancelled


def _cancelled(cancellation: Cancellation, end_time: datetime, version: int) -> Job:
    job = cancellation.job
    attempts = tuple(
        replace(each, end_time=end_time, outcome=AttemptOutcome.CANCELLED) if each.end_time is None else each
        for each in job.attempts
    )
    return replace(
        job,
        waiting_on=(),
        attempts=attempts,
        worker_id=None,
        lease_expire_time=None,
        status=JobStatus.CANCELLED,
        end_time=end_time,
        update_time=end_time,
        version=version,
        cancelled_by_soeid=cancellation.by.soeid,
        cancel_reason=cancellation.reason,
    )


def _event(cancellation: Cancellation, cancelled: Job) -> Event:
    return Event(
        type=EventType.CANCELLED,
        job_id=cancelled.job_id,
        run_type=cancelled.run_type,
        actor=cancellation.by,
        status_before=cancellation.job.status,
        status_after=cancelled.status,
        time=cancelled.update_time,
        reason=cancellation.reason,
    )
