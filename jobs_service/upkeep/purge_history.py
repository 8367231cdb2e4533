"""Deletes history that is old and that every reader has read."""

import logging
from datetime import timedelta

from jobs_service.storage.database import Database
from jobs_service.storage.retention import EVENTS, DeletedEvents
from jobs_service.telemetry.work_metrics import WorkMetrics

_log = logging.getLogger(__name__)


class PurgeHistory:
    """Deletes events of this age, oldest first, whether their jobs are still there or not.

    Replicas may do so at the same time: what one deletes the others leave to it.
    """

    name = "purge_history"

    def __init__(
        self, database: Database, age: timedelta, metrics: WorkMetrics, *, every: float = 300.0
    ) -> None:
        self.every = every
        self._database = database
        self._age = age
        self._metrics = metrics
        # From the start each portion would read again the traces of what is gone.
        self._after = 0

    def run_once(self) -> bool:
        """Delete one portion; True: it was a whole one, there may be more."""
        after, self._after = self._after, 0
        with self._database.transaction() as tx:
            place = tx.event_readers.hindmost()
            found = tx.retention.delete_events(self._age, after, place) if place else DeletedEvents(0, 0, 0)
        if found.deleted:
            self._metrics.purged_events.inc(found.deleted)
            fields = {"events": found.deleted, "last_event_id": found.last}
            _log.info("deleted old history", extra={"fields": fields})
        if found.deleted < EVENTS:
            return False
        self._after = found.last
        return True
