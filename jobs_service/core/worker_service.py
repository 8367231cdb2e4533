"""The operations of workers. Each is one transaction; what others want to know is told after its commit.

Plural, as in job_service: a list of requests in, a list of the same length out, refusals as values.
"""

from collections.abc import Sequence

from jobs_service.core.claim_jobs import claim_jobs
from jobs_service.core.signals import Signals
from jobs_service.model.errors import JobsError
from jobs_service.model.work import ClaimRequest, ClaimResult
from jobs_service.storage.database import Database


class WorkerService:
    """Gives jobs to workers.

    Every operation raises DatabaseUnavailable (TransactionRolledBack where it may be rerun as it is).
    """

    def __init__(self, database: Database, signals: Signals) -> None:
        self._database = database
        self._signals = signals

    def claim_jobs(self, requests: Sequence[ClaimRequest]) -> list[ClaimResult | JobsError]:
        """Claim up to max_jobs for each worker, of the run types asked for that are granted to it.

        The order is priority, turn, job id; jobs that somebody holds are passed over. It waits for nothing:
        a result without claims says that there are none now. Refusals: CallerUnknown, RoleRequired.
        """
        with self._database.transaction() as tx:
            claims = claim_jobs(tx, requests)
        # While they were locked, others may have found nothing.
        self._signals.ready.tell(claims.run_types)
        return claims.results
