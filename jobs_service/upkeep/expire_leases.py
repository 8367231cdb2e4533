"""Takes jobs back whose leases have expired, unless it may be our own fault that no heartbeat came."""

from datetime import datetime

from jobs_service.core.expire_leases import expire_leases
from jobs_service.core.signals import Signals
from jobs_service.storage.database import Database
from jobs_service.telemetry.metrics import Metrics
from jobs_service.telemetry.work_metrics import WorkMetrics
from jobs_service.upkeep.pauses import Pauses

PORTION = 100


class ExpireLeases:
    """The sweep, in every replica.

    After a start, a failure or a pause of this process, and after a start of the database, a job is taken
    back no sooner than its lease lasts: so long its worker has to be heard of again.
    """

    name = "expire_leases"

    def __init__(
        self,
        database: Database,
        signals: Signals,
        pauses: Pauses,
        metrics: WorkMetrics | None = None,
        *,
        every: float = 1.0,
    ) -> None:
        self.every = every
        self._database = database
        self._signals = signals
        self._pauses = pauses
        self._expired = (metrics or Metrics().work).leases_expired
        self._since: datetime | None = None
        """Since when all went well, by the database's clock; None: it did not, just now."""
        self._last_run = 0.0

    def run_once(self) -> bool:
        """Take back one portion; True: there may be more."""
        since, self._since = self._since, None
        if self._pauses.any_since(self._last_run):
            since = None
        self._last_run = self._pauses.clock()
        try:
            with self._database.transaction() as tx:
                since = since or tx.leases.now()
                swept = expire_leases(tx, since=since, limit=PORTION)
                self._require_no_pause()
        except _Paused:
            return False
        self._since = since
        self._signals.tell(tx.news)
        for outcome in swept.outcomes:
            self._expired.labels(outcome).inc()
        return swept.more

    def _require_no_pause(self) -> None:
        if self._pauses.any_since(self._last_run):
            raise _Paused


class _Paused(Exception):
    """The process stood still meanwhile: what has expired since may not be its workers' fault."""
