"""Deletes jobs that ended long ago."""

import logging
from datetime import timedelta

from jobs_service.model.job import JobStatus
from jobs_service.storage.database import Database, Transaction
from jobs_service.storage.event_readers import Place
from jobs_service.storage.job_counts import READER
from jobs_service.storage.retention import BEGINNING, JOBS, Aged
from jobs_service.telemetry.work_metrics import WorkMetrics

_log = logging.getLogger(__name__)


_BETWEEN_PASSES = 300.0
_UNTIL_FREE = 1.0


class PurgeJobs:
    """Deletes jobs of this age, oldest first, but those that something still needs.

    One replica at a time, under the lock of the reader that counts jobs. A pass goes through all that are
    old enough, one portion after the other; what had to stay is looked at again by the next pass.
    """

    name = "purge_jobs"

    def __init__(self, database: Database, age: timedelta, metrics: WorkMetrics) -> None:
        self.every = _BETWEEN_PASSES
        self._database = database
        self._age = age
        self._metrics = metrics
        # From the start each portion would read again what had to stay, and the traces of what is gone.
        self._after = BEGINNING

    def run_once(self) -> bool:
        """Look at one portion and delete what may go; True: the pass goes on."""
        after, self._after = self._after, BEGINNING
        with self._database.transaction() as tx:
            place = tx.event_readers.lock(READER)
            aged = tx.retention.aged(self._age, after) if place else []
            deleted = self._delete(tx, aged, place) if place and aged else 0
        if place is None:
            # Another replica counts, or deletes.
            self._after, self.every = after, _UNTIL_FREE
            return False
        self.every = _BETWEEN_PASSES
        if deleted:
            self._tell(aged, deleted)
        if len(aged) < JOBS:
            return False
        self._after = aged[-1]
        return True

    def _delete(self, tx: Transaction, aged: list[Aged], place: Place) -> int:
        locked = tx.retention.lock([job.job_id for job in aged])
        free = tx.retention.free(locked, self._age, place)
        completed = [job_id for job_id, status in free.items() if status is JobStatus.COMPLETED]
        going = free.keys() - tx.retention.forget_dependants(completed)
        tx.retention.delete(going)
        return len(going)

    def _tell(self, aged: list[Aged], deleted: int) -> None:
        self._metrics.purged_jobs.inc(deleted)
        fields = {"jobs": deleted, "kept": len(aged) - deleted, "ended_until": aged[-1].end_time.isoformat()}
        _log.info("deleted old jobs", extra={"fields": fields})
