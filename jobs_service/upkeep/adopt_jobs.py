"""Puts jobs into the queue that release 0.1.0 has made, which knows none, and sees to what it cancelled."""

from jobs_service.core.signals import Signals
from jobs_service.storage.database import Database
from jobs_service.storage.unheard_ends import NEWEST
from jobs_service.upkeep.fill_places import fill

PORTION = 500


class AdoptJobs:
    """What was there before this release, and what an old replica does beside it."""

    name = "adopt_jobs"

    def __init__(self, database: Database, signals: Signals, *, every: float = 5.0) -> None:
        self.every = every
        self._database = database
        self._signals = signals
        self._after = NEWEST

    def run_once(self) -> bool:
        """Adopt one portion, look at the first of the queue, and at some of those that may wait in vain.

        True: there are more to adopt.
        """
        with self._database.transaction() as tx:
            adopted = tx.queue_duties.adopt(PORTION)
        self._signals.ready.tell(adopted.enqueued.run_types)
        with self._database.transaction() as tx:
            untidy = tx.queue_duties.tidy(PORTION)
        fill(self._database, self._signals, adopted.enqueued.limited | untidy)
        with self._database.transaction() as tx:
            after = tx.unheard_ends.note(self._after, PORTION)
        self._after = after
        return adopted.jobs == PORTION
