"""Makes jobs ready whose time has come: after a start delay, or between two attempts."""

from jobs_service.core.signals import Signals
from jobs_service.storage.database import Database
from jobs_service.upkeep.fill_places import fill

PORTION = 500


class PromoteJobs:
    """Whichever replica comes first promotes a job; what another is at is passed over."""

    name = "promote_jobs"

    def __init__(self, database: Database, signals: Signals, *, every: float = 0.5) -> None:
        self.every = every
        self._database = database
        self._signals = signals

    def run_once(self) -> bool:
        """Promote one portion; True: there are more."""
        with self._database.transaction() as tx:
            promoted = tx.queue_duties.promote(PORTION)
        self._signals.ready.tell(promoted.enqueued.run_types)
        fill(self._database, self._signals, promoted.enqueued.limited)
        return promoted.jobs == PORTION
