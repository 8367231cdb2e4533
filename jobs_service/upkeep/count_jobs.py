"""Counts the jobs by run type and status, and reads what else the metrics tell of them."""

from jobs_service.storage.database import Database
from jobs_service.storage.job_counts import PORTION, READER
from jobs_service.telemetry.job_gauges import JobFigures, JobGauges, Unread

_READ_SECONDS = 5.0
_STALE_AFTER = 3
"""Periods without an answer from the database until the figures are shown no more."""


class CountJobs:
    """Folds the history into the counts, whichever replica comes first, and shows what they then are."""

    name = "count_jobs"

    def __init__(self, database: Database, gauges: JobGauges, *, every: float = 5.0) -> None:
        self.every = every
        self._database = database
        self._gauges = gauges

    def run_once(self) -> bool:
        """Fold one portion and show the figures; True: there are more events to fold."""
        try:
            return self._fold() == PORTION
        finally:
            # Also where nothing can be written now.
            self._show()

    def _fold(self) -> int:
        with self._database.transaction() as tx:
            place = tx.event_readers.lock(READER)
            return tx.job_counts.fold(place) if place else 0

    def _show(self) -> None:
        with self._database.snapshot(seconds=_READ_SECONDS) as tx:
            oldest, untold, unread = (
                tx.queue_figures.oldest(),
                tx.queue_figures.untold(),
                tx.event_readers.unread(),
            )
            figures = JobFigures(
                jobs=tx.job_counts.by_run_type_and_status(),
                queue=tx.queue_figures.depths(),
                oldest_ready_seconds=oldest.ready,
                oldest_pending_seconds=oldest.waiting,
                untold=Unread(untold.jobs, untold.oldest_seconds),
                lease_overdue_seconds=tx.queue_figures.overdue_seconds(),
                unread={name: Unread(left.events, left.oldest_seconds) for name, left in unread.items()},
            )
        self._gauges.set(figures, fresh_seconds=_STALE_AFTER * self.every)
