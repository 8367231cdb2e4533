"""Jobs that ended any time ago with their history, and what upkeep deletes of them."""

from datetime import timedelta
from uuid import UUID

from prometheus_client import CollectorRegistry

from jobs_service.model.job import JobStatus, RunType
from jobs_service.storage.database import Transaction
from jobs_service.storage.job_counts import READER
from jobs_service.storage.retention import BEGINNING
from jobs_service.telemetry.job_gauges import JobGauges
from jobs_service.telemetry.metrics import Metrics
from jobs_service.upkeep.count_jobs import CountJobs
from jobs_service.upkeep.loop import Duty
from jobs_service.upkeep.purge_history import PurgeHistory
from jobs_service.upkeep.purge_jobs import PurgeJobs
from tests.support.world import World

WEEK = timedelta(days=7)
OLD, YOUNG = "8 days", "6 days"
ENDS = {
    JobStatus.COMPLETED: "",
    JobStatus.FAILED: ", error_type = 'ValueError'",
    JobStatus.CANCELLED: ", cancelled_by_soeid = 'al00001'",
}
_JOB = """
INSERT INTO jobs (job_id, run_type, dataset_id, owner_id, creator_id, priority, payload_bytes, run_parameters)
     SELECT gen_random_uuid(), %s, 1, 1, 1, 0, 2, '{}' FROM generate_series(1, %s) RETURNING job_id"""
_EVENT = """
INSERT INTO job_events (type, job_id, run_type, actor_id, actor_soeid, status_before, status_after, time)
     SELECT %s, job_id, run_type, 1, 'al00001', %s, %s, now() - %s::interval
       FROM jobs WHERE job_id = ANY(%s)"""


class Old:
    """A database with jobs of any age, and what one replica does with them."""

    def __init__(self, world: World) -> None:
        self.sql = world.sql
        self.metrics = Metrics(CollectorRegistry())
        self.purge = PurgeJobs(world.database, WEEK, self.metrics.work)
        self.purge_history = PurgeHistory(world.database, WEEK, self.metrics.work)
        self.counting = CountJobs(world.database, JobGauges())
        self.world = world

    def jobs(self, number: int, *, run_type: RunType = RunType.IMPORT) -> list[UUID]:
        """New PENDING jobs with their history, in one transaction."""
        with self.sql.transaction():
            made = [row[0] for row in self.sql.execute(_JOB, (run_type, number))]
            self._tell("CREATED", None, "PENDING", "0", made)
        return made

    def ended(self, number: int = 1, status: JobStatus = JobStatus.COMPLETED, age: str = OLD) -> list[UUID]:
        """New jobs that ended so long ago."""
        made = self.jobs(number)
        self.end(made, status, age)
        return made

    def end(self, job_ids: list[UUID], status: JobStatus, age: str) -> None:
        """End these jobs so long ago."""
        with self.sql.transaction():
            self.sql.execute(
                f"""UPDATE jobs SET status = %s, end_time = now() - %s::interval{ENDS[status]}
                     WHERE job_id = ANY(%s)""".encode(),
                (status, age, job_ids),
            )
            self._tell(status, "PENDING", status, age, job_ids)

    def depend(self, dependant: UUID, *others: UUID) -> None:
        """Have a job depend on others."""
        for other in others:
            self.sql.execute("INSERT INTO job_dependencies VALUES (%s, %s)", (dependant, other))

    def count(self) -> None:
        """Read all that can be read of the history."""
        while self.counting.run_once():
            pass

    def pass_once(self, duty: Duty | None = None) -> int:
        """One pass; returns how many portions it took."""
        duty, portions = duty or self.purge, 1
        while duty.run_once():
            portions += 1
        return portions

    def chosen(self, tx: Transaction) -> list[UUID]:
        """What a purge has locked and chosen, and not deleted yet."""
        place = tx.event_readers.lock(READER)
        assert place is not None
        locked = tx.retention.lock([job.job_id for job in tx.retention.aged(WEEK, BEGINNING)])
        return list(tx.retention.free(locked, WEEK, place))

    def there(self) -> set[UUID]:
        """The jobs that there are."""
        return {row[0] for row in self.sql.execute("SELECT job_id FROM jobs")}

    def rows(self, table: str) -> int:
        """How many rows a table has."""
        row = self.sql.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
        assert row is not None
        return int(row[0])

    def events(self) -> list[int]:
        """The ids of all events, oldest first."""
        return [row[0] for row in self.sql.execute("SELECT event_id FROM job_events ORDER BY event_id")]

    def require_right_counts(self) -> None:
        """AssertionError unless the counts, not only as they are shown, are what is there."""
        counted = self.sql.execute("SELECT run_type, status, jobs FROM job_counts WHERE jobs <> 0").fetchall()
        there = self.sql.execute("SELECT run_type, status, count(*) FROM jobs GROUP BY 1, 2").fetchall()
        assert sorted(counted) == sorted(there)

    def _tell(self, kind: str, before: str | None, after: str, age: str, job_ids: list[UUID]) -> None:
        self.sql.execute(_EVENT, (kind, before, after, age, job_ids))
