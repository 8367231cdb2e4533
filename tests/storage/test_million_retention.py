"""With a million jobs what is old is found by indexes and goes in portions, on either Postgres.

What counts is which index a table is read by and how many rows; times are only shown.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event
from sqlalchemy.sql import Executable

from jobs_service.storage import retention
from jobs_service.storage.database import Transaction
from jobs_service.storage.event_readers import Place
from jobs_service.storage.job_counts import READER
from jobs_service.storage.retention import BEGINNING, EVENTS, JOBS, Aged, Retention
from jobs_service.telemetry.job_gauges import JobGauges
from jobs_service.telemetry.metrics import Metrics
from jobs_service.upkeep.count_jobs import CountJobs
from jobs_service.upkeep.loop import Duty
from jobs_service.upkeep.purge_history import PurgeHistory
from jobs_service.upkeep.purge_jobs import PurgeJobs
from tests.support import million
from tests.support.plans import Plan, Planned, explained, sent
from tests.support.postgres import PostgresServer
from tests.support.world import World

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

AGE = timedelta(days=1)
# What jobs that ended leave behind: every fifth was tried twice, every tenth waited for the one before it,
# and of those that still wait every second one waits for an old one.
_LEFT_BEHIND = (
    """
    INSERT INTO job_attempts
         SELECT job_id, claim, claim, gen_random_uuid(), 'worker', create_time, end_time, 'COMPLETED', NULL,
                NULL, NULL, false
           FROM jobs, generate_series(1, 2) claim WHERE end_time IS NOT NULL AND random() < 0.1
    """,
    """
    INSERT INTO job_dependencies
         SELECT job_id, earlier
           FROM (SELECT job_id, lag(job_id, 3) OVER (ORDER BY create_time) AS earlier FROM jobs) following
          WHERE random() < 0.1 AND earlier IS NOT NULL
    """,
    """
    INSERT INTO job_dependencies
         SELECT waiting.job_id, old.job_id
           FROM (SELECT job_id, row_number() OVER () AS n FROM jobs WHERE status = 'PENDING') waiting
           JOIN (SELECT job_id, row_number() OVER (ORDER BY end_time) AS n FROM jobs
                  WHERE end_time IS NOT NULL) old ON old.n = waiting.n * 2
             ON CONFLICT DO NOTHING
    """,
    """
    INSERT INTO job_queue
         SELECT job_id, run_type, -priority, row_number() OVER (), dataset_id, payload_bytes, available_time,
                true, false, false FROM jobs WHERE status = 'PENDING'
    """,
    """
    INSERT INTO job_leases
         SELECT job_id, 1, 1, gen_random_uuid(), 'worker', dataset_id, false, now(), now(), '60 s', now()
           FROM jobs WHERE status = 'RUNNING'
    """,
    "VACUUM ANALYZE",
)


class Full:
    """A database with a million jobs whose history is counted."""

    def __init__(self, world: World) -> None:
        self.world = world
        counting = CountJobs(world.database, JobGauges())
        while counting.run_once():
            pass
        with world.database.transaction() as tx:
            place = tx.event_readers.lock(READER)
            assert place is not None
            self.place: Place = place
            self.aged: list[Aged] = tx.retention.aged(AGE, BEGINNING)
        self.job_ids: list[UUID] = [job.job_id for job in self.aged]

    def dependants(self, n: int) -> int:
        """How many depend on the first n of these jobs; on one of them ten thousand do."""
        query = "SELECT count(*) FROM job_dependencies WHERE depends_on_job_id = ANY(%s)"
        row = self.world.sql.execute(query, (self.job_ids[:n],)).fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture(scope="module")
def full(postgres: PostgresServer) -> Iterator[Full]:
    world = World(postgres.new_database())
    try:
        million.fill(world.sql)
        for statement in _LEFT_BEHIND:
            world.sql.execute(statement.encode())
        yield Full(world)
    finally:
        world.close()


@dataclass(frozen=True, slots=True)
class Case:
    """A method: how it is called for n jobs, by which indexes it reads, how many rows, and for each of n.

    rows_each_dependant: for each that depends on one of them.
    """

    send: Callable[[Full, Transaction, int], object]
    indexes: frozenset[str]
    rows: int
    rows_each: int
    rows_each_dependant: int = 0


_PARTS = frozenset({"pk_job_queue", "pk_job_leases", "pk_job_attempts", "pk_job_dependencies"})
_NAMED = frozenset({"ix_job_dependencies_depends_on_job_id_job_id", "pk_job_dependencies"})
CASES = {
    "aged": Case(
        lambda full, tx, n: tx.retention.aged(AGE, BEGINNING if n == 1 else full.aged[-1]),
        frozenset({"ix_jobs_ended"}),
        JOBS + 10,
        0,
    ),
    "lock": Case(lambda full, tx, n: tx.retention.lock(full.job_ids[:n]), frozenset({"pk_jobs"}), 0, 1),
    "free": Case(
        lambda full, tx, n: tx.retention.free(full.job_ids[:n], AGE, full.place),
        _NAMED | {"pk_jobs", "pk_ended_dependencies", "ix_job_events_job_id_event_id"},
        0,
        3,
        # Until one is found that is PENDING: the row that names it, and its own.
        2,
    ),
    "forget_dependants": Case(
        lambda full, tx, n: tx.retention.forget_dependants(full.job_ids[:n]),
        _NAMED,
        0,
        # Postgres 15 tells of each job's dependants the rounded average.
        1,
        1,
    ),
    "delete": Case(lambda full, tx, n: tx.retention.delete(full.job_ids[:n]), _PARTS | {"pk_jobs"}, 0, 3),
    "delete_events": Case(
        lambda full, tx, n: tx.retention.delete_events(AGE, 0 if n == 1 else EVENTS, full.place),
        frozenset({"pk_job_events"}),
        3 * EVENTS,
        0,
    ),
}
SMALL = {"job_counts", "event_readers", "ended_dependencies", "job_leases", "job_queue"}
"""Tables that may be read whole where it is many jobs: they are narrow, and hold what has not ended."""


PORTIONS = 40
# What the first portions look at and leave: jobs that others wait for, or are still to be told of.
_PROTECTED = """
SELECT count(*)
  FROM (SELECT job_id FROM jobs WHERE end_time IS NOT NULL ORDER BY end_time, job_id LIMIT %s) first
 WHERE EXISTS (SELECT FROM job_dependencies JOIN jobs USING (job_id)
                WHERE depends_on_job_id = first.job_id AND status = 'PENDING')
    OR EXISTS (SELECT FROM ended_dependencies WHERE job_id = first.job_id)"""


def rolled_back(full: Full, case: Case, n: int) -> None:
    """Call the method, and take back what it did."""

    def run() -> None:
        with full.world.database.transaction() as tx:
            case.send(full, tx, n)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run()


def plans_of(full: Full, case: Case, n: int, planned: Planned) -> list[Plan]:
    statements = sent(full.world.database, lambda: rolled_back(full, case, n))
    return [explained(full.world.sql, one, planned) for one in statements]


@pytest.mark.parametrize("n", [1, 100, JOBS])
@pytest.mark.parametrize("planned", Planned, ids=lambda planned: planned.name)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_statement_goes_by_its_index(full: Full, case: Case, planned: Planned, n: int) -> None:
    plans = plans_of(full, case, n, planned)
    most = case.rows + case.rows_each * n + case.rows_each_dependant * full.dependants(n)
    assert plans
    for plan in plans:
        large = [scan for scan in plan.scans if scan.table not in SMALL and scan.kind != "Tid Scan"]
        assert {scan.index for scan in large} <= case.indexes, plan
        assert sum(scan.rows for scan in large) <= most, plan


def test_every_method_and_statement_is_looked_at(full: Full) -> None:
    assert {name for name in vars(Retention) if not name.startswith("_")} == set(CASES)
    engine, sent_here = full.world.database.engine, set[int]()

    def note(_conn: Any, statement: Executable, *_: Any) -> None:
        sent_here.add(id(statement))

    event.listen(engine, "before_execute", note)
    for case in CASES.values():
        rolled_back(full, case, 1)
    event.remove(engine, "before_execute", note)
    written = {
        name
        for name, found in vars(retention).items()
        for statement in (found if isinstance(found, list) else [found])
        if isinstance(statement, Executable) and name.isupper() and id(statement) not in sent_here
    }
    # Sent only where there is more than one portion of dependants.
    assert written == {"_STILL_NAMED"}


def test_a_portion_is_deleted_whole_and_says_how_long_it_took(
    full: Full, capsys: pytest.CaptureFixture[str]
) -> None:
    """Changes the database: the last one."""
    metrics = Metrics().work
    protected = full.world.sql.execute(_PROTECTED, (PORTIONS * JOBS,)).fetchone()
    lines = [str(full.world.sql.info.server_version)]
    duties: list[Duty] = [
        PurgeJobs(full.world.database, AGE, metrics),
        PurgeHistory(full.world.database, AGE, metrics),
    ]
    for duty in duties:
        times = []
        for _ in range(PORTIONS):
            begin = time.perf_counter()
            assert duty.run_once()
            times.append((time.perf_counter() - begin) * 1000)
        lines.append(f"{duty.name:16}{statistics.median(times):8.1f} ms a portion, {max(times):8.1f} at most")
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    left = full.world.sql.execute("SELECT count(*) FROM jobs").fetchone()
    assert left is not None
    assert protected is not None
    assert 0 < protected[0] < PORTIONS * JOBS
    assert left[0] == million.JOBS - PORTIONS * JOBS + protected[0]
