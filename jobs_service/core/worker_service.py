"""The operations of workers. Each is one transaction; what others want to know is told after its commit.

Plural, as in job_service: a list of requests in, a list of the same length out, refusals as values.
"""

from collections.abc import Sequence

from jobs_service.core.claim_jobs import claim_jobs
from jobs_service.core.finish_jobs import finish_jobs
from jobs_service.core.heartbeat_jobs import heartbeat_jobs
from jobs_service.core.queue_heads import QueueHeads
from jobs_service.core.signals import Signals
from jobs_service.model.errors import JobsError, RowLocked
from jobs_service.model.job import JobView
from jobs_service.model.work import (
    ClaimRequest,
    ClaimResult,
    FinishRequest,
    FinishResult,
    HeartbeatRequest,
    HeartbeatResult,
)
from jobs_service.storage.database import Database


class WorkerService:
    """Gives jobs to workers, and takes in what they say of them.

    Every operation raises DatabaseUnavailable (TransactionRolledBack where it may be rerun as it is).
    """

    def __init__(self, database: Database, signals: Signals, heads: QueueHeads | None = None) -> None:
        self._database = database
        self._signals = signals
        self._heads = heads or QueueHeads()

    def claim_jobs(self, requests: Sequence[ClaimRequest]) -> list[ClaimResult | JobsError]:
        """Claim up to max_jobs for each worker, of the run types asked for that are granted to it.

        The order is priority, turn, job id; jobs that somebody holds are passed over. It waits for nothing:
        a result without claims says that there are none now. Refusals: CallerUnknown, RoleRequired.
        """
        with self._database.transaction() as tx:
            claims = claim_jobs(tx, requests, self._heads)
        # While they were locked, others may have found nothing.
        self._signals.ready.tell(claims.run_types)
        return claims.results

    def heartbeat_jobs(self, requests: Sequence[HeartbeatRequest]) -> list[list[HeartbeatResult] | JobsError]:
        """Renew leases and note progress; one result for each lease, in the order of the request.

        The same lease may be named more than once. A lease that another transaction holds for too long
        stays as it is, and progress of a job that one holds is left out. Refusals: CallerUnknown,
        RoleRequired.
        """
        try:
            return self._heartbeat_jobs(requests, wait=True)
        except RowLocked:
            return self._heartbeat_jobs(requests, wait=False)

    def _heartbeat_jobs(
        self, requests: Sequence[HeartbeatRequest], *, wait: bool
    ) -> list[list[HeartbeatResult] | JobsError]:
        with self._database.transaction() as tx:
            return heartbeat_jobs(tx, requests, wait=wait)

    def finish_jobs(
        self, requests: Sequence[FinishRequest], view: JobView = JobView.FULL
    ) -> list[FinishResult | JobsError]:
        """End claims: of several requests with one token the first wins, whatever the others say.

        A request of the kind that has ended the claim already is answered as that one was, with the job as
        it is now. view: what is read of the jobs. Refusals: CallerUnknown, RoleRequired, JobNotFound,
        LeaseLost, RowLocked where another transaction holds the job for too long.
        """
        try:
            return self._finish_jobs(requests, view, wait=True)
        except RowLocked:
            # One job that is held must not keep the others waiting for the same lock again.
            return self._finish_jobs(requests, view, wait=False)

    def _finish_jobs(
        self, requests: Sequence[FinishRequest], view: JobView, *, wait: bool
    ) -> list[FinishResult | JobsError]:
        with self._database.transaction() as tx:
            results = finish_jobs(tx, requests, view, wait=wait)
        self._signals.tell(tx.news)
        return results
