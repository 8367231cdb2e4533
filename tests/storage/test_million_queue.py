"""The queue stays flat with a million jobs that have ended and a hundred thousand that wait.

What counts is by which indexes a statement reads, how many rows and how many blocks; times are only shown.
"""

import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import UUID

import pytest
from sqlalchemy.sql import Executable
from sqlalchemy.sql.elements import ClauseElement

from jobs_service.core.claim_jobs import ANSWER_BYTES
from jobs_service.model.job import RunType
from jobs_service.storage import claims, job_queue, places, queue_duties
from jobs_service.storage.database import Transaction
from tests.support import million
from tests.support.plans import Plan, Planned, Statement, explained, sent
from tests.support.postgres import PostgresServer
from tests.support.queued import claim_request
from tests.support.world import User, World

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

WAITING = 100_000
FULL, ROOMY = 1, 2
"""Two data sets with a limit of 5: one has no place left, the other five."""
Work = Callable[["Crowded", Transaction, int], object]

# Every other job is of data set 1; the clock stands at the first turn, 2,000 start later, 200 of them now.
_QUEUE = f"""
INSERT INTO jobs (job_id, run_type, status, dataset_id, owner_id, creator_id, priority, turn, payload_bytes,
                  run_parameters, create_time)
     SELECT md5('q' || n)::uuid, (ARRAY['IMPORT', 'IMPORT', 'SAMPLING', 'SQL_TRANSFORM'])[1 + n / 2 % 4],
            'PENDING', CASE WHEN n % 2 = 0 THEN 1 ELSE 1 + n % 5000 END, 1, 1, n % 100 / 99,
            CASE WHEN n % 2 = 0 THEN n / 2 ELSE n / 5000 END, 20, '{{"file_path": "a"}}', now()
       FROM generate_series(1, {WAITING}) n;
INSERT INTO job_queue
     SELECT job_id, run_type, -priority, turn, dataset_id, payload_bytes, create_time, true, false, false
       FROM jobs WHERE turn IS NOT NULL;
UPDATE job_queue SET ready = false,
       available_time = now() + (n - 200) * interval '1 s'
  FROM (SELECT job_id, row_number() OVER (ORDER BY job_id) AS n FROM job_queue
         WHERE dataset_id > 2 ORDER BY job_id LIMIT 2000) late
 WHERE job_queue.job_id = late.job_id;
INSERT INTO dataset_limits VALUES ({FULL}, 5), ({ROOMY}, 5);
UPDATE job_queue SET limited = true, held = true WHERE dataset_id IN ({FULL}, {ROOMY});
UPDATE job_queue SET held = false
 WHERE job_id IN (SELECT job_id FROM job_queue WHERE dataset_id = {FULL} AND ready
                   ORDER BY neg_priority, turn, job_id LIMIT 5);
INSERT INTO job_leases
     SELECT job_id, 1, 1, job_id, 'w', dataset_id, false, now(), now(), '1 min', now() FROM jobs
      WHERE status = 'RUNNING'
"""


class Crowded:
    """A database with all of that."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.worker: User = world.service_user()
        self.waiting = self._ids("SELECT job_id FROM job_queue WHERE ready AND NOT held")
        self.running = self._ids("SELECT job_id FROM jobs WHERE status = 'RUNNING'")

    def _ids(self, query: str) -> list[UUID]:
        return [row[0] for row in self.world.sql.execute(f"{query} ORDER BY job_id LIMIT 100".encode())]

    def claim(self, tx: Transaction, jobs: int, run_types: list[RunType]) -> None:
        """Claim as the service does."""
        tx.queue.begin_claims([self.worker.user_id])
        everywhere = dict.fromkeys(run_types, claims.FIRST)
        request = claim_request(self.worker, jobs, run_types)
        tx.queue.claim(everywhere, [request], answer_bytes=ANSWER_BYTES)

    def sent(self, work: Work, n: int) -> list[Statement]:
        """What is sent; it is taken back."""

        def run() -> None:
            with self.world.database.transaction() as tx:
                work(self, tx, n)
                raise InterruptedError

        def interrupted() -> None:
            with pytest.raises(InterruptedError):
                run()

        return sent(self.world.database, interrupted)

    def explained(self, statements: list[Statement], planned: Planned) -> list[Plan]:
        """How they run one after the other: with what the first has set, too."""
        with self.world.sql.transaction(force_rollback=True):
            plans = []
            for statement in statements:
                plans.append(explained(self.world.sql, statement, planned))
                if "set_config" in statement.sql:
                    self.world.sql.execute(statement.sql.encode(), statement.parameters)
            return plans


@pytest.fixture(scope="module")
def crowded(postgres: PostgresServer) -> Iterator[Crowded]:
    world = World(postgres.new_database())
    try:
        million.fill(world.sql, analyze=False)
        for statement in _QUEUE.split(";\n"):
            world.sql.execute(statement.encode())
        world.sql.execute("SELECT setval('users_user_id_seq', 1000000)")
        world.sql.execute("VACUUM ANALYZE")
        yield Crowded(world)
    finally:
        world.close()


@dataclass(frozen=True, slots=True)
class Case:
    """What is sent for n, how many rows it may read of all tables for each of n, and how many blocks."""

    send: Work
    rows: int
    blocks: int
    fixed_rows: int = 60


ALL = list(RunType)
CASES = {
    "JobQueue.claim": Case(lambda full, tx, n: full.claim(tx, n, [RunType.IMPORT]), 7, 60),
    "JobQueue.claim of all": Case(lambda full, tx, n: full.claim(tx, n, ALL), 16, 80),
    "JobQueue.begin_claims": Case(lambda full, tx, _: tx.queue.begin_claims([full.worker.user_id]), 10, 20),
    "JobQueue.remove": Case(lambda full, tx, n: tx.queue.remove(full.waiting[:n]), 2, 20),
    "JobQueue.enqueue": Case(
        lambda full, tx, n: (tx.queue.remove(full.waiting[:n]), tx.queue.enqueue(full.waiting[:n])), 7, 60
    ),
    "QueueDuties.promote": Case(lambda _, tx, n: tx.queue_duties.promote(n), 8, 60),
    "QueueDuties.adopt": Case(lambda _, tx, n: tx.queue_duties.adopt(n), 6, 90),
    "QueueDuties.tidy": Case(lambda _, tx, n: tx.queue_duties.tidy(n), 36, 80),
    "QueueDuties.dead_rows": Case(lambda _, tx, __: tx.queue_duties.dead_rows(), 1, 10),
    "QueueDuties.head": Case(lambda _, tx, __: tx.queue_duties.head(RunType.IMPORT), 2, 10),
    "Places.fill": Case(lambda _, tx, n: tx.places.fill(range(1, n + 1)), 12, 60),
    "Places.fill free": Case(lambda _, tx, n: tx.places.fill(range(1, n + 1), wait=False), 12, 60),
    "Places.unfilled": Case(lambda _, tx, n: tx.places.unfilled(), 40, 80),
}
_LITERAL = r"__\\\[POSTCOMPILE_\w+\\\]"
BY_HAND = {"Places.relabel", "Places.keep_running"}
"""What only the command line sends."""
BY_LEASES = {"Places.label_leases"}
"""What reads the leases, all of them: jobs that run, thousands at most."""


@pytest.mark.parametrize("n", [1, 8, 100])
@pytest.mark.parametrize("planned", Planned, ids=lambda planned: planned.name)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_statement_reads_what_it_is_about(crowded: Crowded, case: Case, planned: Planned, n: int) -> None:
    statements = crowded.sent(case.send, n)
    for plan in crowded.explained(statements, planned):
        large = {"jobs", "job_queue", "job_events", "job_leases", "users", "datasets"}
        assert [scan for scan in plan.scans if scan.kind == "Seq Scan" and scan.table in large] == []
        assert sum(scan.rows for scan in plan.scans) <= case.rows * n + case.fixed_rows, plan
        assert plan.blocks <= case.blocks * (n + 5), plan


def test_every_method_of_the_queue_is_looked_at() -> None:
    stores = (job_queue.JobQueue, queue_duties.QueueDuties, places.Places)
    methods = {
        f"{store.__name__}.{name}" for store in stores for name in vars(store) if not name.startswith("_")
    }
    assert methods == {name.split(" ")[0] for name in CASES} | BY_HAND | BY_LEASES


def test_every_statement_of_the_queue_is_looked_at(crowded: Crowded) -> None:
    dialect = crowded.world.database.engine.dialect
    written = {
        name: re.sub(_LITERAL, "'[^']*'", re.escape(str(found.compile(dialect=dialect))))
        for module in (job_queue, claims, queue_duties, places)
        for name, found in vars(module).items()
        if isinstance(found, Executable) and isinstance(found, ClauseElement) and name.isupper()
    }
    seen = {one.sql for case in CASES.values() for one in crowded.sent(case.send, 1)}
    missing = {name for name, text in written.items() if not any(re.fullmatch(text, sent) for sent in seen)}
    # Of jobs claimed again: by the primary key of their attempts.
    assert missing == {
        "ATTEMPTS",
        "_RELABEL_QUEUE",
        "_RELABEL_LEASES",
        "_LABEL_LEASES",
        "_KEEP_RUNNING",
        "_CLOCK",
    }


def test_what_it_costs_is_shown(crowded: Crowded, capsys: pytest.CaptureFixture[str]) -> None:
    lines = []
    for name, case in CASES.items():
        for n in (1, 100):
            plans = crowded.explained(crowded.sent(case.send, n), Planned.GENERIC)
            rows = sum(scan.rows for plan in plans for scan in plan.scans)
            blocks = sum(plan.blocks for plan in plans)
            lines.append(f"{name:28}{n:5}{_milliseconds(crowded, case, n):9.1f} ms {rows:6} r {blocks:6} b")
    with capsys.disabled():
        print("\n" + str(crowded.world.sql.info.server_version))
        print("\n".join(lines))


def _milliseconds(crowded: Crowded, case: Case, n: int) -> float:
    times = []
    for _ in range(12):
        begin = time.perf_counter()
        crowded.sent(case.send, n)
        times.append((time.perf_counter() - begin) * 1000)
    return statistics.median(times)
