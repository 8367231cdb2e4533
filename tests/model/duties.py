"""What the service does by itself, done now, and what time does, done at once."""

from datetime import timedelta
from uuid import UUID

import psycopg
from prometheus_client import CollectorRegistry

from jobs_service.core.signals import Signals
from jobs_service.storage.database import Database
from jobs_service.telemetry.metrics import Metrics
from jobs_service.upkeep.count_jobs import CountJobs
from jobs_service.upkeep.expire_leases import ExpireLeases
from jobs_service.upkeep.fill_places import FillPlaces
from jobs_service.upkeep.loop import Duty
from jobs_service.upkeep.pauses import Pauses
from jobs_service.upkeep.promote_jobs import PromoteJobs
from jobs_service.upkeep.purge_jobs import PurgeJobs
from jobs_service.upkeep.tell_dependants import TellDependants
from tests.support.work_rows import age_leases

_PORTIONS = 100


class Duties:
    """The duties of one process."""

    def __init__(self, database: Database, signals: Signals) -> None:
        self._database, self._pauses = database, Pauses()
        metrics = Metrics(CollectorRegistry())
        self._sweep = ExpireLeases(database, signals, self._pauses)
        self._promote = PromoteJobs(database, signals)
        self._fill = FillPlaces(database, signals)
        self._tell = TellDependants(database, signals)
        self._count = CountJobs(database, metrics.jobs)
        self._purge = PurgeJobs(database, timedelta(days=1), metrics.work)

    def sweep(self) -> None:
        """Take back every job whose lease is over."""
        self._pauses.tick()
        _to_the_end(self._sweep)

    def promote(self) -> None:
        """Make ready whose time has come."""
        _to_the_end(self._promote)

    def tell_dependants(self) -> None:
        """Tell those that were left."""
        _to_the_end(self._tell)

    def purge(self) -> None:
        """Delete the ended jobs that are older than a day, once they are counted."""
        _to_the_end(self._count)
        _to_the_end(self._purge)

    def fill(self) -> None:
        """Give the places that nobody has been given."""
        _to_the_end(self._fill)

    @staticmethod
    def age_lease(sql: psycopg.Connection, job_id: UUID, *, timed_out: bool) -> None:
        """Let its lease be over, or all its time."""
        age_leases(sql, [str(job_id)], timed_out=timed_out)


def _to_the_end(duty: Duty) -> None:
    """Run it until there is no more to do."""
    for _ in range(_PORTIONS):
        if not duty.run_once():
            return
    raise AssertionError(f"{duty.name} finds no end")
