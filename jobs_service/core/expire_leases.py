"""The sweep: takes jobs back from workers that were not heard of, or that take too long."""

from dataclasses import dataclass
from datetime import datetime

from jobs_service.core.end_claims import end_claims, follow_up
from jobs_service.model.caller import SYSTEM
from jobs_service.model.endings import overdue
from jobs_service.model.job import AttemptOutcome
from jobs_service.storage.database import Transaction


@dataclass(frozen=True, slots=True)
class Swept:
    """outcomes: of the claims that were ended. more: a whole portion was dealt with, there may be others."""

    outcomes: tuple[AttemptOutcome, ...]
    more: bool

    @property
    def taken_back(self) -> int:
        """How many jobs were taken from their workers."""
        return len(self.outcomes)


def expire_leases(tx: Transaction, *, since: datetime, limit: int) -> Swept:
    """Take back up to limit jobs whose leases have expired; any number of replicas may do so at once.

    since: since when, by the database's clock, heartbeats could surely come in: a lease that lasts longer
    than that is left alone. What others hold is left for the next time.
    """
    candidates = tx.leases.candidates(since=since, limit=limit)
    if not candidates:
        return Swept((), more=False)
    found = tx.endings.take(candidates)
    # Looked at again under the locks: a heartbeat may have renewed what was read before.
    expired = tx.leases.lock_overdue([*found.held, *found.rest], since=since)
    endings = [overdue(job, expired[job_id]) for job_id, job in found.held.items() if job_id in expired]
    end_claims(tx, endings, {ending.job.job_id: SYSTEM for ending in endings}, wait=False)
    # An older release has cancelled these, and knew of no lease.
    leftovers = tx.endings.revoke(found.rest & expired.keys())
    follow_up(tx, freed=leftovers.limited, wait=False)
    tx.news.revoked |= {ending.job.job_id for ending in endings}
    dealt_with = len(endings) + len(leftovers.job_ids)
    return Swept(tuple(ending.outcome for ending in endings), more=dealt_with == limit)
