"""A commit counts once the synchronous standby has it; what was cut short is not acknowledged."""

import signal
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from jobs_service.core.job_service import JobService
from jobs_service.model.caller import Level
from jobs_service.model.errors import DatabaseUnavailable
from jobs_service.model.job import NewJob, RunType
from jobs_service.model.requests import CreateRequest, CreateResult
from jobs_service.storage import schema
from jobs_service.storage.database import Database
from jobs_service.telemetry.job_gauges import JobGauges
from jobs_service.telemetry.metrics import Metrics
from jobs_service.transport.batcher import run_again
from jobs_service.upkeep.count_jobs import CountJobs
from tests.support.pgbouncer import running_pgbouncer
from tests.support.postgres import open_database
from tests.support.service import wait_until
from tests.support.standby import Pair, running_pair
from tests.support.world import World

WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """One for all tests of this file: each lets the standby go on at its end."""
    with running_pair() as running:
        database = open_database(running.url)
        schema.migrate(database.engine)
        database.close()
        yield running


@pytest.fixture(params=["direct", "pgbouncer"])
def database(request: pytest.FixtureRequest, pair: Pair) -> Iterator[Database]:
    """The database as the service opens it, with a limit of one second."""
    if request.param == "direct":
        database = open_database(pair.url, statement_seconds=1)
        yield database
    else:
        with running_pgbouncer(pair.primary_url()) as pgbouncer:
            database = open_database(pgbouncer.url, statement_seconds=1, pooled=True)
            yield database
            database.close()
    database.close()


@contextmanager
def standby_away(pair: Pair) -> Iterator[None]:
    """The standby is frozen, so that commits wait for it."""
    pair.standby.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        pair.standby.signal(signal.SIGCONT)
        pair.wait_for_standby()


class Counted:
    """A transaction that writes a data set; how often it ran, and how it ended."""

    def __init__(self, database: Database, dataset_id: int) -> None:
        self.runs = 0
        self._database = database
        self._dataset_id = dataset_id

    def run(self) -> None:
        """Run it as the batcher does."""
        run_again(self._once, Metrics().batches("test"))

    def _once(self) -> None:
        self.runs += 1
        with self._database.transaction() as tx:
            tx.access.put_dataset(self._dataset_id, "written")


class CreateJobs:
    """The same request to create a job, again and again."""

    def __init__(self, pair: Pair, database: Database) -> None:
        world = World(pair.primary_url())
        dataset = world.dataset()
        user = world.user(grants={dataset: Level.WRITE})
        world.close()
        job = NewJob(
            dataset_id=dataset,
            run_type=RunType.IMPORT,
            run_parameters={"file_path": "a.csv"},
            payload_bytes=20,
            request_hash=b"0" * 32,
            request_id=uuid.uuid4(),
        )
        self._request = CreateRequest(user.caller, job)
        self._service = JobService(database)

    def run(self) -> CreateResult:
        """Ask."""
        [result] = self._service.create_jobs([self._request])
        assert isinstance(result, CreateResult)
        return result


def waiting(pair: Pair) -> list[int]:
    """The server's processes whose commits wait for the standby."""
    with pair.primary.connect("jobs") as sql:
        return [pid for (pid,) in sql.execute(WAITING)]


def wait_for(pair: Pair, number: int) -> list[int]:
    """Wait until this many commits wait for the standby."""
    wait_until(lambda: len(waiting(pair)) == number, 10, f"{number} commits wait")
    return waiting(pair)


@pytest.mark.parametrize("end", ["pg_cancel_backend", "pg_terminate_backend"])
def test_a_commit_whose_wait_is_ended_is_neither_acknowledged_nor_run_again(
    pair: Pair, database: Database, end: str
) -> None:
    work = Counted(database, 1)
    with standby_away(pair), ThreadPoolExecutor(1) as thread:
        done = thread.submit(work.run)
        [pid] = wait_for(pair, 1)
        pair.primary.say(f"SELECT {end}({pid})")
        error = done.exception(20)
    assert type(error) is DatabaseUnavailable
    assert work.runs == 1
    work.run()
    assert work.runs == 2


def test_commits_that_wait_for_too_long_are_unknown_and_leave_nothing_behind(
    pair: Pair, database: Database
) -> None:
    works = [Counted(database, 10 + n) for n in range(3)]
    with standby_away(pair), ThreadPoolExecutor(3) as threads:
        results = [threads.submit(work.run) for work in works]
        wait_for(pair, 3)
        with database.one_statement() as tx:
            assert not tx.access.user_exists(0)
        assert {type(result.exception(20)) for result in results} == {DatabaseUnavailable}
        assert waiting(pair) == []
    assert [work.runs for work in works] == [1, 1, 1]
    for work in works:
        work.run()


def test_a_repeated_request_is_answered_only_when_the_standby_has_the_job(
    pair: Pair, database: Database
) -> None:
    ask = CreateJobs(pair, database)
    with standby_away(pair), ThreadPoolExecutor(2) as threads:
        first = threads.submit(ask.run)
        [pid] = wait_for(pair, 1)
        pair.primary.say(f"SELECT pg_cancel_backend({pid})")
        assert type(first.exception(20)) is DatabaseUnavailable
        # The job is there for all to see, and would be gone with the primary.
        second = threads.submit(ask.run)
        wait_for(pair, 1)
        assert not second.done()
        pair.standby.signal(signal.SIGCONT)
        assert second.result(20).replayed


def test_jobs_are_counted_while_the_standby_is_away(pair: Pair, database: Database) -> None:
    gauges = JobGauges()
    duty = CountJobs(database, gauges)
    ask = CreateJobs(pair, database)
    with standby_away(pair), ThreadPoolExecutor(1) as thread:
        first = thread.submit(ask.run)
        wait_for(pair, 1)
        # What it counts is there to be seen, and the database's limit is one second.
        duty.run_once()
        assert any(family.name == "jobs_jobs" for family in gauges.collect())
        first.exception(20)
