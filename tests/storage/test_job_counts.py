"""Jobs counted from their history: in the end exactly what is there, whoever commits and counts when."""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from jobs_service.core.job_service import JobService
from jobs_service.model.caller import Level
from jobs_service.model.errors import DatabaseUnavailable, JobsError
from jobs_service.model.job import JobStatus, NewJob, RunType
from jobs_service.model.requests import CancelRequest, CreateRequest, CreateResult
from jobs_service.storage.database import Database
from jobs_service.storage.event_readers import ReaderAhead
from jobs_service.storage.job_counts import PORTION, READER
from jobs_service.telemetry.job_gauges import JobFigures, JobGauges
from jobs_service.upkeep.count_jobs import CountJobs
from tests.support.documents import blocks
from tests.support.plans import scans, sent
from tests.support.postgres import connect, open_database
from tests.support.service import wait_until
from tests.support.world import User, World

INSERT_JOB = """
INSERT INTO jobs (job_id, run_type, status, dataset_id, owner_id, creator_id, priority, payload_bytes,
                  run_parameters)
     VALUES (gen_random_uuid(), %s, 'PENDING', 1, 1, 1, 0, 2, '{}') RETURNING job_id"""
# As release 0.1.0 writes it: without the run type.
INSERT_EVENT = """
INSERT INTO job_events (type, job_id, actor_id, actor_soeid, status_before, status_after, time)
     VALUES (%s, %s, 1, 'al00001', %s, %s, now())"""


class Counter(JobGauges):
    """One replica's duty, and what it shows."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.shown: list[JobFigures] = []
        self.duty = CountJobs(database, self)

    def set(self, figures: JobFigures, *, fresh_seconds: float) -> None:
        """Note what is to be shown."""
        self.shown.append(figures)

    def count(self) -> dict[tuple[str, str], int]:
        """Count until nothing is left; returns the counts that are not 0."""
        while self.duty.run_once():
            pass
        return {key: jobs for key, jobs in self.shown[-1].jobs.items() if jobs}


@pytest.fixture
def counter(stored_world: World) -> Counter:
    return Counter(stored_world.database)


def there(world: World) -> dict[tuple[str, str], int]:
    rows = world.sql.execute("SELECT run_type, status, count(*) FROM jobs GROUP BY 1, 2").fetchall()
    return {(run_type, status): count for run_type, status, count in rows}


def create(sql: psycopg.Connection, run_type: str = "IMPORT") -> str:
    row = sql.execute(INSERT_JOB, (run_type,)).fetchone()
    assert row is not None
    sql.execute(INSERT_EVENT, ("CREATED", row[0], None, "PENDING"))
    return str(row[0])


def cancel(sql: psycopg.Connection, job_id: str) -> None:
    sql.execute(
        """UPDATE jobs SET status = 'CANCELLED', end_time = now(), cancelled_by_soeid = 'al00001'
            WHERE job_id = %s""",
        (job_id,),
    )
    sql.execute(INSERT_EVENT, ("CANCELLED", job_id, "PENDING", "CANCELLED"))


def new_request(user: User, dataset: int, run_type: RunType) -> CreateRequest:
    job = NewJob(
        dataset_id=dataset,
        run_type=run_type,
        run_parameters={"sources": []},
        payload_bytes=2,
        request_hash=b"h" * 32,
    )
    return CreateRequest(user.caller, job)


def test_an_empty_database_has_zeros_for_every_run_type_and_status(counter: Counter) -> None:
    assert counter.count() == {}
    (figures,) = counter.shown
    assert set(figures.jobs) == {(kind, status) for kind in RunType for status in JobStatus}
    assert figures.oldest_pending_seconds == 0
    assert figures.unread[READER].events == 0


def test_creates_and_cancels_of_the_service_are_counted(stored_world: World, counter: Counter) -> None:
    service, dataset = JobService(stored_world.database), stored_world.dataset()
    user = stored_world.user(grants={dataset: Level.WRITE})
    created = service.create_jobs([new_request(user, dataset, kind) for kind in RunType for _ in range(3)])
    jobs = [result.job for result in created if isinstance(result, CreateResult)]
    service.cancel_jobs([CancelRequest(user.caller, job.job_id, None) for job in jobs[:4]])
    assert counter.count() == there(stored_world)
    unset = stored_world.sql.execute("SELECT count(*) FROM job_events WHERE run_type IS NULL").fetchone()
    assert unset == (0,)


def test_what_is_committed_late_is_counted_when_it_is(stored_world: World, counter: Counter) -> None:
    with connect(stored_world.database_url) as late:
        with late.transaction():
            create(late, "SAMPLING")
            create(stored_world.sql, "IMPORT")
            # What was committed beside it waits with it: its place in the order is not sure yet.
            assert counter.count() == {}
            assert counter.shown[-1].unread[READER].events == 1
        assert counter.count() == {("SAMPLING", "PENDING"): 1, ("IMPORT", "PENDING"): 1}
        assert counter.shown[-1].unread[READER].events == 0


def test_what_was_rolled_back_is_never_counted(stored_world: World, counter: Counter) -> None:
    with connect(stored_world.database_url) as other, other.transaction(force_rollback=True):
        create(other)
    create(stored_world.sql)
    assert counter.count() == {("IMPORT", "PENDING"): 1}


def test_a_portion_ends_within_a_transaction_and_goes_on_there(stored_world: World, counter: Counter) -> None:
    for statement in (
        "CREATE TEMP TABLE made AS SELECT gen_random_uuid() AS job_id FROM generate_series(1, %s)",
        """INSERT INTO jobs (job_id, run_type, dataset_id, owner_id, creator_id, priority, payload_bytes,
                             run_parameters) SELECT job_id, 'IMPORT', 1, 1, 1, 0, 2, '{}' FROM made""",
        """INSERT INTO job_events (type, job_id, actor_id, actor_soeid, status_after, time)
                SELECT 'CREATED', job_id, 1, 'al00001', 'PENDING', now() FROM made""",
    ):
        text = statement.replace("%s", str(PORTION * 2 + 1))
        stored_world.sql.execute(text.encode())
    assert counter.duty.run_once()
    assert counter.shown[-1].jobs[RunType.IMPORT, JobStatus.PENDING] == PORTION
    assert counter.shown[-1].unread[READER].events == PORTION + 1
    assert counter.count() == {("IMPORT", "PENDING"): PORTION * 2 + 1}


def test_only_one_replica_counts_at_a_time_and_the_other_shows_what_is_known(
    stored_world: World, counter: Counter
) -> None:
    create(stored_world.sql)
    with stored_world.database.transaction() as tx:
        assert tx.event_readers.lock(READER) is not None
        assert not counter.duty.run_once()
        assert not any(counter.shown[-1].jobs.values())
    assert counter.count() == {("IMPORT", "PENDING"): 1}


def test_a_replica_that_dies_between_leaves_everything_to_the_next(
    stored_world: World, counter: Counter
) -> None:
    create(stored_world.sql)
    dying = open_database(stored_world.database_url)

    def count_and_die() -> int:
        with dying.transaction() as tx:
            place = tx.event_readers.lock(READER)
            assert place is not None
            folded = tx.job_counts.fold(place)
            dying.abort()
        return folded

    with pytest.raises(DatabaseUnavailable):
        count_and_die()
    dying.close()
    assert counter.count() == {("IMPORT", "PENDING"): 1}


@pytest.fixture
def replicas(stored_world: World) -> Iterator[list[Counter]]:
    databases = [open_database(stored_world.database_url, pool_size=2) for _ in range(2)]
    yield [Counter(database) for database in databases]
    for database in databases:
        database.close()


def write(url: str, seed: int) -> None:
    """Several jobs and changes in transactions of any length, a third of them rolled back."""
    chance = random.Random(seed)
    with connect(url) as sql:
        for _ in range(40):
            mine: list[str] = []
            with sql.transaction(force_rollback=chance.random() < 0.3):
                for _ in range(chance.randrange(1, 12)):
                    mine.append(create(sql, chance.choice(list(RunType)).value))
                    if chance.random() < 0.4:
                        cancel(sql, mine.pop(chance.randrange(len(mine))))
                sql.execute("SELECT pg_sleep(%s)", (chance.random() * 0.02,))


def end_counting(url: str, done: threading.Event) -> int:
    """End connections in the middle of counting, again and again; returns how many."""
    ended = 0
    with connect(url) as sql:
        while not done.wait(0.03):
            ended += sql.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE datname = current_database() AND pid <> pg_backend_pid()
                      AND application_name = 'jobs-service' AND state LIKE '%in transaction%'"""
            ).rowcount
    return ended


def count_on(replica: Counter, done: threading.Event) -> int:
    """Count until done, whatever happens; returns how often it failed."""
    failed = 0
    while not done.is_set():
        try:
            replica.duty.run_once()
        except JobsError:
            failed += 1
    return failed


def test_the_counts_are_exact_whoever_commits_when_and_whoever_counts(
    stored_world: World, replicas: list[Counter]
) -> None:
    url, done = stored_world.database_url, threading.Event()
    with ThreadPoolExecutor(8) as threads:
        counting = [threads.submit(count_on, replica, done) for replica in replicas]
        ending = threads.submit(end_counting, url, done)
        try:
            for writing in [threads.submit(write, url, seed) for seed in range(4)]:
                writing.result(60)
        finally:
            done.set()
        failures = sum(task.result(60) for task in counting)
    for replica in replicas:
        assert replica.count() == there(stored_world)
    assert ending.result() > 0
    assert failures > 0
    assert all(len(replica.shown) > 2 for replica in replicas)


def test_counting_anew_as_the_readme_says_is_exact_where_transaction_ids_went_back(
    stored_world: World, counter: Counter
) -> None:
    create(stored_world.sql)
    cancel(stored_world.sql, create(stored_world.sql))
    # As after a dump and restore into another cluster.
    stored_world.sql.execute("UPDATE job_events SET transaction_id = '4000000000'")
    stored_world.sql.execute("UPDATE event_readers SET transaction_id = '4000000000'")
    create(stored_world.sql)
    with pytest.raises(ReaderAhead, match="restored from a dump"):
        counter.count()
    [recipe] = blocks("Backup and restore", "sql")
    stored_world.sql.execute(recipe.encode())
    create(stored_world.sql)
    # Others use the same cluster: while one of their transactions runs, what came after it is not read.
    wait_until(lambda: counter.count() == there(stored_world), 20, "all is counted")
    assert counter.shown[-1].unread[READER].events == 0


EVENTS, ACTIVE = 50_000, 20_000


def test_counting_reads_only_what_is_new(stored_world: World, counter: Counter) -> None:
    sql = stored_world.sql
    sql.execute(
        f"""INSERT INTO jobs (job_id, run_type, dataset_id, owner_id, creator_id, priority, payload_bytes,
                              run_parameters, create_time)
            SELECT gen_random_uuid(), 'IMPORT', 1, 1, 1, 0, 2, '{{}}', now() - n * interval '1 s'
              FROM generate_series(1, {ACTIVE}) n;
            INSERT INTO job_events (type, job_id, run_type, actor_id, actor_soeid, status_after, time)
            SELECT 'CREATED', gen_random_uuid(), 'IMPORT', 1, 'al00001', 'PENDING', now()
              FROM generate_series(1, {EVENTS});
            ANALYZE""".encode()
    )
    counter.count()
    create(sql)
    statements = sent(stored_world.database, counter.duty.run_once)
    read = [
        scan
        for statement in statements
        if "set_config" not in statement.sql
        for scan in scans(sql, statement)
    ]
    assert {scan.table for scan in read} >= {"job_events", "job_counts", "event_readers"}
    assert sum(scan.rows for scan in read if scan.table in {"jobs", "job_events"}) < 10, read
