"""Heartbeats: leases renewed, progress taken in, and workers told which jobs to stop."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from jobs_service.core import permissions
from jobs_service.model.errors import JobsError
from jobs_service.model.job import JobStatus, JsonObject
from jobs_service.model.work import HeartbeatRequest, HeartbeatResult, LeaseState
from jobs_service.storage.database import Transaction
from jobs_service.storage.lease_store import Standing, Token

_LOST = HeartbeatResult(LeaseState.LOST)


def heartbeat_jobs(
    tx: Transaction, requests: Sequence[HeartbeatRequest], *, wait: bool
) -> list[list[HeartbeatResult] | JobsError]:
    """Renew the leases asked for; see WorkerService.heartbeat_jobs. wait: for leases that others hold."""
    workers = tx.queue.begin_claims({request.caller.user_id for request in requests})
    refusals: list[JobsError | None] = []
    allowed: list[HeartbeatRequest] = []
    for request in requests:
        try:
            permissions.require_worker(request.caller, workers[request.caller.user_id].role)
            allowed.append(request)
            refusals.append(None)
        except JobsError as refusal:
            refusals.append(refusal)
    results = _renew(tx, allowed, wait=wait) if allowed else {}
    answers = (
        [results[Token(lease.job_id, lease.lease_token)] for lease in request.leases] for request in allowed
    )
    return [next(answers) if refusal is None else refusal for refusal in refusals]


def _renew(
    tx: Transaction, requests: Sequence[HeartbeatRequest], *, wait: bool
) -> dict[Token, HeartbeatResult]:
    """Renew each lease once, whoever names it; of several values the last one holds."""
    durations: dict[Token, timedelta] = {}
    progress: dict[Token, JsonObject] = {}
    for request in requests:
        for lease in request.leases:
            token = Token(lease.job_id, lease.lease_token)
            durations[token] = request.lease_duration
            if lease.progress is not None:
                progress[token] = dict(lease.progress)
    # Rows of jobs are locked before those of leases, everywhere.
    if progress:
        tx.leases.report(list(progress.items()))
    renewed = tx.leases.renew(list(durations.items()), wait=wait)
    others = [token for token in durations if token not in renewed]
    standings = tx.leases.standings(others) if others else []
    return {token: _renewed(time) for token, time in renewed.items()} | {
        token: _result(standing) for token, standing in zip(others, standings, strict=True)
    }


def _renewed(lease_expire_time: datetime) -> HeartbeatResult:
    return HeartbeatResult(LeaseState.RENEWED, lease_expire_time)


def _result(standing: Standing | None) -> HeartbeatResult:
    """What to say of a lease that was not renewed."""
    if standing is None:
        return _LOST
    if standing.status is JobStatus.CANCELLED:
        is_last = standing.is_current or (standing.ended is not None and standing.ended.is_last)
        return HeartbeatResult(LeaseState.CANCEL_REQUESTED) if is_last else _LOST
    if standing.status is JobStatus.RUNNING and standing.lease_expire_time is not None:
        # Another transaction holds the lease: it lasts as long as it did.
        return _renewed(standing.lease_expire_time)
    return _LOST
