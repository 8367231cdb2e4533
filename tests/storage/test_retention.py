"""Old jobs and old history go, in portions, and nothing that anybody still needs."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from prometheus_client import CollectorRegistry

from jobs_service.core.job_service import JobService
from jobs_service.model.caller import Level
from jobs_service.model.job import JobStatus, NewJob, RunType
from jobs_service.model.requests import CreateRequest, CreateResult
from jobs_service.storage.database import Transaction
from jobs_service.storage.event_readers import ReaderAhead
from jobs_service.storage.job_counts import READER
from jobs_service.storage.retention import BEGINNING, DEPENDANTS, EVENTS, JOBS
from jobs_service.telemetry.job_gauges import JobGauges
from jobs_service.telemetry.metrics import Metrics
from jobs_service.upkeep.count_jobs import CountJobs
from jobs_service.upkeep.loop import Duty
from jobs_service.upkeep.purge_history import PurgeHistory
from jobs_service.upkeep.purge_jobs import PurgeJobs
from tests.support.postgres import connect, open_database
from tests.support.service import wait_until
from tests.support.world import User, World

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


@pytest.fixture
def old(stored_world: World) -> Old:
    return Old(stored_world)


def test_jobs_that_ended_long_ago_go_and_no_others(old: Old) -> None:
    for status in ENDS:
        old.ended(2, status)
    stay = {*old.ended(1, age=YOUNG), *old.jobs(2)}
    running, aged = old.jobs(2)
    old.sql.execute("UPDATE jobs SET status = 'RUNNING' WHERE job_id = %s", (running,))
    old.sql.execute(
        "UPDATE jobs SET create_time = now() - interval '1 y', update_time = now() - interval '1 y'"
        " WHERE job_id IN (%s, %s)",
        (running, aged),
    )
    old.count()
    old.pass_once()
    assert old.there() == stay | {running, aged}
    assert old.metrics.registry.get_sample_value("jobs_purged_jobs_total") == 6


def test_with_a_job_goes_what_belongs_to_it_and_its_history_stays(old: Old) -> None:
    gone, other = old.ended(), old.jobs(1)
    for job_id in (*gone, *other):
        old.depend(job_id, uuid4())
        old.sql.execute(
            """INSERT INTO job_attempts SELECT %s, n, n, gen_random_uuid(), 'w', now(), now(), 'FAILED', 'E',
                      NULL, true, true FROM generate_series(1, 3) n""",
            (job_id,),
        )
    # As release 0.1.0 leaves them when it cancels.
    old.sql.execute(
        "INSERT INTO job_queue VALUES (%s, 'IMPORT', 0, 1, 1, 2, now(), true, false, false)", (gone[0],)
    )
    old.sql.execute(
        """INSERT INTO job_leases VALUES (%s, 1, 1, gen_random_uuid(), 'w', 1, false, now(), now(), '60 s',
                  now())""",
        (gone[0],),
    )
    old.count()
    old.pass_once()
    left = {name: old.rows(name) for name in ("job_attempts", "job_dependencies", "job_queue", "job_leases")}
    assert left == {"job_attempts": 3, "job_dependencies": 1, "job_queue": 0, "job_leases": 0}
    assert len(old.events()) == 3


@pytest.mark.parametrize("status", ENDS)
def test_a_job_that_a_pending_one_waits_for_stays_until_that_has_ended(old: Old, status: JobStatus) -> None:
    [awaited], [dependant, claimed] = old.ended(status=status), old.jobs(2)
    old.depend(dependant, awaited)
    old.depend(claimed, awaited)
    old.sql.execute("UPDATE jobs SET status = 'RUNNING' WHERE job_id = %s", (claimed,))
    old.count()
    old.pass_once()
    assert awaited in old.there()
    old.end([dependant], JobStatus.CANCELLED, YOUNG)
    old.count()
    old.pass_once()
    assert old.there() == {dependant, claimed}


def test_a_job_whose_dependants_are_still_to_be_told_stays_until_they_are(old: Old) -> None:
    _, untold = old.ended(2)
    old.sql.execute("INSERT INTO ended_dependencies (job_id) VALUES (%s)", (untold,))
    old.count()
    old.pass_once()
    assert old.there() == {untold}
    old.sql.execute("DELETE FROM ended_dependencies")
    old.pass_once()
    assert old.there() == set()


@pytest.mark.parametrize(("status", "named"), [("COMPLETED", 0), ("FAILED", 1), ("CANCELLED", 1)])
def test_a_dependant_that_ended_too_still_knows_of_the_dependency_that_failed_it(
    old: Old, status: str, named: int
) -> None:
    [dependency], [dependant] = old.ended(status=JobStatus(status)), old.ended(1, JobStatus.CANCELLED, YOUNG)
    old.depend(dependant, dependency)
    old.count()
    old.pass_once()
    assert old.there() == {dependant}
    assert old.rows("job_dependencies") == named
    old.sql.execute("UPDATE jobs SET end_time = now() - interval '8 days'")
    old.pass_once()
    assert (old.there(), old.rows("job_dependencies")) == (set(), 0)


def test_a_job_with_very_many_dependants_takes_several_passes(old: Old) -> None:
    popular, _ = old.ended(2)
    old.sql.execute(
        "INSERT INTO job_dependencies SELECT gen_random_uuid(), %s FROM generate_series(1, %s)",
        (popular, DEPENDANTS * 2 + 1),
    )
    old.count()
    old.pass_once()
    assert (old.there(), old.rows("job_dependencies")) == ({popular}, DEPENDANTS + 1)
    old.pass_once()
    assert (old.there(), old.rows("job_dependencies")) == ({popular}, 1)
    old.pass_once()
    assert (old.there(), old.rows("job_dependencies")) == (set(), 0)


def test_a_job_whose_history_is_not_counted_yet_stays_until_it_is(old: Old) -> None:
    with connect(old.world.database_url) as late, late.transaction():
        # As release 0.1.0 writes it: its run type stands in the job alone.
        late.execute("SELECT pg_current_xact_id()")
        [job_id] = old.ended()
        old.sql.execute("UPDATE job_events SET run_type = NULL")
        old.count()
        old.pass_once()
        assert old.there() == {job_id}
    old.count()
    old.pass_once()
    assert old.there() == set()
    old.require_right_counts()


def test_a_pass_goes_on_behind_what_has_to_stay(old: Old) -> None:
    kept = old.ended(JOBS + 1, age="9 days")
    old.sql.execute("INSERT INTO ended_dependencies (job_id) SELECT unnest(%s)", (kept,))
    old.ended(JOBS + 1)
    old.count()
    assert old.pass_once() == 3
    assert old.there() == set(kept)
    old.sql.execute("DELETE FROM ended_dependencies")
    old.pass_once()
    assert old.there() == set()


def test_a_portion_says_what_it_deleted_and_nothing_says_nothing(
    old: Old, caplog: pytest.LogCaptureFixture
) -> None:
    old.ended(3)
    [kept] = old.ended()
    old.sql.execute("INSERT INTO ended_dependencies (job_id) VALUES (%s)", (kept,))
    old.count()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            old.pass_once()
            old.pass_once(old.purge_history)
    told = [(record.getMessage(), record.__dict__["fields"]) for record in caplog.records]
    assert [message for message, _ in told] == ["deleted old jobs", "deleted old history"]
    assert (told[0][1]["jobs"], told[0][1]["kept"], told[1][1]["events"]) == (3, 1, 4)


# --- The same job at the same time: its row's lock decides.

_RETRY = """
UPDATE jobs SET status = 'PENDING', end_time = NULL, error_type = NULL, version = version + 1
 WHERE job_id = %s AND status = 'FAILED' RETURNING job_id"""
_WAITING = """
SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"""


def wait_for_waiting(old: Old, number: int = 1) -> None:
    def waiting() -> bool:
        return old.sql.execute(_WAITING).fetchone() == (number,)

    wait_until(waiting, 10, "somebody waits for a row")


def test_a_job_that_is_being_retried_stays_and_keeps_no_purge_waiting(old: Old) -> None:
    [job_id] = old.ended(status=JobStatus.FAILED)
    old.count()
    with connect(old.world.database_url) as retrying, retrying.transaction():
        assert retrying.execute(_RETRY, (job_id,)).rowcount == 1
        old.pass_once()
    old.pass_once()
    assert old.there() == {job_id}


def test_a_retry_of_a_job_that_is_being_deleted_finds_none(old: Old) -> None:
    [job_id] = old.ended(status=JobStatus.FAILED)
    old.count()

    def retry() -> int:
        with connect(old.world.database_url) as sql:
            return sql.execute(_RETRY, (job_id,)).rowcount

    with ThreadPoolExecutor(1) as thread:
        with old.world.database.transaction() as tx:
            assert old.chosen(tx) == [job_id]
            retrying = thread.submit(retry)
            wait_for_waiting(old)
            tx.retention.delete([job_id])
        assert retrying.result(10) == 0
    assert old.there() == set()


def test_a_job_that_was_retried_since_the_purge_saw_it_stays(old: Old) -> None:
    [job_id, again] = old.ended(2, JobStatus.FAILED)
    old.count()
    with old.world.database.transaction() as tx:
        place = tx.event_readers.lock(READER)
        assert place is not None
        aged = [job.job_id for job in tx.retention.aged(WEEK, BEGINNING)]
        for one in aged:
            old.sql.execute(_RETRY, (one,))
        old.end([again], JobStatus.FAILED, "0")
        locked = tx.retention.lock(aged)
        assert tx.retention.free(locked, WEEK, place) == {}
    assert old.there() == {job_id, again}


def test_a_job_that_a_new_one_is_about_to_depend_on_stays(old: Old) -> None:
    [dependency] = old.ended()
    old.count()
    with connect(old.world.database_url) as creating, creating.transaction():
        creating.execute("SELECT FROM jobs WHERE job_id = %s FOR SHARE", (dependency,))
        old.pass_once()
        [dependant] = old.jobs(1)
        creating.execute("INSERT INTO job_dependencies VALUES (%s, %s)", (dependant, dependency))
    old.pass_once()
    assert old.there() == {dependency, dependant}


def test_a_dependency_that_came_while_the_purge_looked_is_seen(old: Old) -> None:
    [dependency], [dependant] = old.ended(), old.jobs(1)
    old.count()
    with old.world.database.transaction() as tx:
        place = tx.event_readers.lock(READER)
        assert place is not None
        aged = [job.job_id for job in tx.retention.aged(WEEK, BEGINNING)]
        # Whoever creates locks FOR SHARE, which leaves no new version of the row behind.
        with old.sql.transaction():
            old.sql.execute("SELECT FROM jobs WHERE job_id = %s FOR SHARE", (dependency,))
            old.depend(dependant, dependency)
        assert tx.retention.lock(aged) == [dependency]
        assert tx.retention.free([dependency], WEEK, place) == {}


def test_a_new_job_can_not_depend_on_one_that_is_being_deleted(old: Old) -> None:
    [dependency] = old.ended()
    old.count()

    def found() -> int:
        with connect(old.world.database_url) as sql:
            return sql.execute("SELECT FROM jobs WHERE job_id = %s FOR SHARE", (dependency,)).rowcount

    with ThreadPoolExecutor(1) as thread:
        with old.world.database.transaction() as tx:
            tx.retention.delete(old.chosen(tx))
            looking = thread.submit(found)
            wait_for_waiting(old)
        assert looking.result(10) == 0


def repeated(user: User, dataset: int, request_id: UUID) -> CreateRequest:
    """The same request each time."""
    job = NewJob(
        dataset_id=dataset,
        run_type=RunType.IMPORT,
        run_parameters={"file_path": "a"},
        payload_bytes=2,
        request_hash=b"0" * 32,
        request_id=request_id,
    )
    return CreateRequest(user.caller, job)


def test_a_request_repeated_while_its_job_is_being_deleted_makes_a_new_one(old: Old) -> None:
    service, dataset = JobService(old.world.database), old.world.dataset()
    request = repeated(old.world.user(grants={dataset: Level.WRITE}), dataset, uuid4())

    def create() -> UUID:
        [result] = service.create_jobs([request])
        assert isinstance(result, CreateResult)
        assert not result.replayed
        return result.job.job_id

    first = create()
    old.end([first], JobStatus.COMPLETED, OLD)
    old.count()
    with ThreadPoolExecutor(1) as thread:
        with old.world.database.transaction() as tx:
            tx.retention.delete(old.chosen(tx))
            repeating = thread.submit(create)
            wait_for_waiting(old)
        second = repeating.result(10)
    assert old.there() == {second}


def test_replicas_that_purge_at_once_delete_each_job_once_and_keep_the_counts_right(old: Old) -> None:
    kept = old.ended(100, age="9 days")
    old.sql.execute("INSERT INTO ended_dependencies (job_id) SELECT unnest(%s)", (kept,))
    for status in ENDS:
        old.ended(JOBS, status)
    pending, done = old.jobs(50), threading.Event()

    def replica() -> float:
        database = open_database(old.world.database_url, pool_size=2)
        metrics = Metrics(CollectorRegistry())
        duties: list[Duty] = [
            PurgeJobs(database, WEEK, metrics.work),
            PurgeHistory(database, WEEK, metrics.work),
            CountJobs(database, JobGauges()),
        ]
        while not done.is_set():
            for duty in duties:
                duty.run_once()
        database.close()
        return metrics.registry.get_sample_value("jobs_purged_jobs_total") or 0.0

    with ThreadPoolExecutor(3) as threads:
        replicas = [threads.submit(replica) for _ in range(3)]
        try:
            wait_until(lambda: len(old.there()) == 150, 60, "all old jobs are gone")
        finally:
            done.set()
        deleted = [one.result(30) for one in replicas]
    assert sum(deleted) == 3 * JOBS
    assert old.there() == {*kept, *pending}
    old.count()
    old.require_right_counts()


# --- History.


def test_old_history_goes_oldest_first_in_portions_whatever_became_of_its_jobs(old: Old) -> None:
    made = old.jobs(EVENTS + 10)
    old.sql.execute("UPDATE job_events SET time = now() - interval '8 days'")
    old.end(made[:3], JobStatus.COMPLETED, YOUNG)
    old.count()
    ids = old.events()
    assert old.purge_history.run_once()
    assert old.events() == ids[EVENTS:]
    assert not old.purge_history.run_once()
    assert old.events() == ids[-3:]
    assert len(old.there()) == EVENTS + 10
    assert old.metrics.registry.get_sample_value("jobs_purged_events_total") == EVENTS + 10


def test_what_a_reader_has_not_read_stays(old: Old) -> None:
    for _ in range(4):
        old.ended()
    old.count()
    ids = old.events()
    old.sql.execute("INSERT INTO event_readers (reader) VALUES ('relay')")
    old.pass_once(old.purge_history)
    assert old.events() == ids
    old.sql.execute(
        """UPDATE event_readers SET (transaction_id, event_id) =
                  (SELECT transaction_id, event_id FROM job_events WHERE event_id = %s)
            WHERE reader = 'relay'""",
        (ids[4],),
    )
    old.pass_once(old.purge_history)
    # The events of creation, too, are of today: of four jobs that ended, two are read.
    assert old.events() == [ids[0], ids[2], *ids[4:]]


def test_where_a_reader_is_ahead_of_the_cluster_no_history_is_deleted(old: Old) -> None:
    old.ended()
    old.sql.execute("UPDATE event_readers SET transaction_id = '4000000000'")
    for duty in (old.purge_history, old.purge):
        with pytest.raises(ReaderAhead, match="restored from a dump"):
            duty.run_once()
    assert (len(old.events()), len(old.there())) == (2, 1)


_OLD_EVENTS = """
INSERT INTO job_events (type, job_id, actor_id, actor_soeid, status_after, time)
     SELECT 'CREATED', gen_random_uuid(), 1, 'al00001', 'PENDING', now() - interval '8 days'
       FROM generate_series(1, %s)"""


def test_history_that_was_committed_late_goes_with_a_later_pass(old: Old) -> None:
    url = old.world.database_url
    with connect(url) as first, connect(url) as late, late.transaction():
        with first.transaction():
            first.execute("SELECT pg_current_xact_id()")
            late.execute(_OLD_EVENTS, (1,))
            first.execute(_OLD_EVENTS, (EVENTS,))
        old.count()
        assert old.purge_history.run_once()
        assert old.events() == []
    # It stands before all that was deleted.
    old.count()
    assert len(old.events()) == 1
    for _ in range(2):
        old.pass_once(old.purge_history)
    assert old.events() == []
