"""Every statement finds its rows by an index, whoever asks: looked at with 100,000 jobs.

What counts is how many rows of the jobs table a statement reads, not how long that took here.
"""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import pytest

from jobs_service.model.caller import Caller
from jobs_service.model.job import JobStatus, JobView, NewJob, RunType
from jobs_service.model.requests import Cursor, GetRequest, JobFilter
from jobs_service.storage.access_store import StandingQuestion
from jobs_service.storage.database import Transaction
from jobs_service.storage.deleted_datasets import DeletedDataset
from jobs_service.storage.job_insert import JobInsert
from jobs_service.storage.job_store import RequestKey
from tests.support.plans import Planned, Scan, Statement, explained, scans_of_jobs, sent
from tests.support.postgres import PostgresServer
from tests.support.world import World

JOBS = 100_000
DATASETS = 2_000
OWNERS = 500
PAGE = 100
# Postgres 18 tells rows as an average over the loops, to two places.
ROUNDED = 1.05

# Data set d has about JOBS / d / 8 jobs: the first is hot, the last are rare. Owners are even. One
# job of a hundred is still active, one of fifty was made by a program for somebody else.
_FILL = f"""
INSERT INTO users (user_id, soeid, role) OVERRIDING SYSTEM VALUE
     SELECT n, 'pl' || lpad(n::text, 5, '0'), 'user' FROM generate_series(1, {OWNERS + 10}) n;
INSERT INTO datasets (dataset_id, name) SELECT n, 'd' || n FROM generate_series(1, {DATASETS}) n;
INSERT INTO jobs (job_id, run_type, status, dataset_id, owner_id, creator_id, priority, create_time,
                  end_time, error_type, payload_bytes, run_parameters, external_id, request_id, request_hash)
     SELECT md5(n::text)::uuid,
            (ARRAY['IMPORT', 'SAMPLING', 'EXPLORATION', 'SQL_TRANSFORM'])[1 + n % 4],
            CASE WHEN n % 100 = 0 THEN 'PENDING' WHEN n % 100 < 5 THEN 'FAILED' ELSE 'COMPLETED' END,
            least({DATASETS}, greatest(1, floor(exp(random() * ln({DATASETS})))))::bigint,
            1 + n % {OWNERS},
            CASE WHEN n % 50 = 0 THEN {OWNERS + 1} ELSE 1 + n % {OWNERS} END,
            0,
            '2026-01-01Z'::timestamptz + n * interval '1 s',
            CASE WHEN n % 100 <> 0 THEN '2026-01-01Z'::timestamptz + (n + 60) * interval '1 s' END,
            CASE WHEN n % 100 BETWEEN 1 AND 4 THEN 'ValueError' END,
            20, '{{"file_path": "a"}}', 'ext-' || n / 10, md5('r' || n)::uuid, decode('00', 'hex')
       FROM generate_series(1, {JOBS}) n;
INSERT INTO job_dependencies (job_id, depends_on_job_id)
     SELECT md5(n::text)::uuid, md5((n - k)::text)::uuid
       FROM generate_series(100, {JOBS}, 100) n, generate_series(1, 5) k;
UPDATE jobs SET dependencies = 5 WHERE status = 'PENDING';
INSERT INTO job_leases
     SELECT job_id, 1, 1, gen_random_uuid(), 'w', dataset_id, false, now(), now(), interval '1 min', now()
       FROM jobs LIMIT 5000;
INSERT INTO job_attempts
     SELECT job_id, 1, 1, gen_random_uuid(), 'w', now(), now(), 'RELEASED', NULL, NULL, NULL, true
       FROM jobs LIMIT 5000;
INSERT INTO dataset_permissions (user_id, dataset_id, level)
     SELECT {OWNERS + 2}, {DATASETS} - 1, 'read'
      UNION ALL SELECT {OWNERS + 3}, 1, 'read'
      UNION ALL SELECT {OWNERS + 4}, n, 'read' FROM generate_series(1, {DATASETS}) n
      UNION ALL SELECT {OWNERS + 5}, n, 'read' FROM generate_series(1000, 1049) n;
"""
ADMIN = None
OWNER, CREATOR, READER_OF_RARE, READER_OF_HOT, READER_OF_ALL, READER_OF_50, STRANGER = (
    7,
    OWNERS + 1,
    OWNERS + 2,
    OWNERS + 3,
    OWNERS + 4,
    OWNERS + 5,
    OWNERS + 6,
)
VIEWERS = {
    "admin": ADMIN,
    "owner without a permission": OWNER,
    "creator": CREATOR,
    "reader of a rare data set": READER_OF_RARE,
    "reader of the hot data set": READER_OF_HOT,
    "reader of every data set": READER_OF_ALL,
    "reader of 50 data sets": READER_OF_50,
    "stranger": STRANGER,
}
EVERYTHING = JobFilter()


@dataclass
class Full:
    """A database with all those jobs."""

    world: World

    def scans(self, work: Callable[[Transaction], object]) -> list[Scan]:
        """The scans of the jobs table in all statements that the work sends in a snapshot."""
        database = self.world.database

        def run() -> None:
            with database.snapshot(seconds=60) as tx:
                work(tx)

        return self._explained(run)

    def listed(self, work: Callable[[Transaction], object]) -> list[Statement]:
        """The statements that the work sends in a snapshot, its settings left out."""

        def run() -> None:
            with self.world.database.snapshot(seconds=60) as tx:
                work(tx)

        return sent(self.world.database, run)[1:]

    def written(self, work: Callable[[Transaction], object]) -> list[Scan]:
        """The same for work that writes; it is rolled back."""

        def run() -> None:
            def fail_at_the_end() -> None:
                with self.world.database.transaction() as tx:
                    work(tx)
                    raise InterruptedError

            with pytest.raises(InterruptedError):
                fail_at_the_end()

        return self._explained(run)

    def _explained(self, run: Callable[[], None]) -> list[Scan]:
        statements = sent(self.world.database, run)
        assert statements
        return [scan for one in statements for scan in scans_of_jobs(self.world.sql, one)]


@pytest.fixture(scope="module")
def full(postgres: PostgresServer) -> Iterator[Full]:
    world = World(postgres.new_database())
    for statement in _FILL.split(";\n"):
        if statement.strip():
            world.sql.execute(statement.encode())
    world.sql.execute("VACUUM ANALYZE")
    yield Full(world)
    world.close()


def _rows(scans: list[Scan]) -> int:
    for scan in scans:
        assert scan.kind != "Seq Scan", scans
    return sum(scan.rows for scan in scans)


def _list(
    viewer: int | None, wanted: JobFilter = EVERYTHING, cursor: Cursor | None = None
) -> Callable[[Transaction], object]:
    return lambda tx: tx.job_list.newest(viewer, wanted, cursor=cursor, skip=0, limit=PAGE + 1)


def _first(viewer: int | None, wanted: JobFilter, tx: Transaction) -> object:
    return tx.job_list.newest(viewer, wanted, cursor=None, skip=0, limit=1)


@pytest.mark.parametrize("viewer", VIEWERS.values(), ids=VIEWERS)
def test_a_first_page_reads_little_for_every_kind_of_caller(full: Full, viewer: int | None) -> None:
    # The window of 2,000, then a page for each of up to three sources and the page itself.
    assert _rows(full.scans(_list(viewer))) < 3_500


@pytest.mark.parametrize("viewer", VIEWERS.values(), ids=VIEWERS)
def test_a_page_in_the_middle_reads_as_little(full: Full, viewer: int | None) -> None:
    middle = Cursor(datetime(2026, 1, 1, 14, tzinfo=UTC), uuid.UUID(int=0))
    assert _rows(full.scans(_list(viewer, EVERYTHING, middle))) < 3_500


FILTERS = {
    "owner": JobFilter(owner_id=OWNER),
    "a rare data set": JobFilter(dataset_id=DATASETS - 1),
    "external id": JobFilter(external_id="ext-77"),
    "failed": JobFilter(statuses=frozenset({JobStatus.FAILED})),
    "pending": JobFilter(statuses=frozenset({JobStatus.PENDING, JobStatus.RUNNING})),
    "a day": JobFilter(
        create_time_from=datetime(2026, 1, 1, 1, tzinfo=UTC),
        create_time_to=datetime(2026, 1, 1, 2, tzinfo=UTC),
    ),
}


@pytest.mark.parametrize("wanted", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("viewer", [ADMIN, OWNER, READER_OF_ALL], ids=["admin", "owner", "reader of all"])
def test_a_filter_is_found_by_its_index(full: Full, viewer: int | None, wanted: JobFilter) -> None:
    assert _rows(full.scans(_list(viewer, wanted))) < 4_500


def test_an_old_window_is_entered_at_its_end(full: Full) -> None:
    wanted = JobFilter(create_time_to=datetime(2026, 1, 1, 1, tzinfo=UTC))
    for viewer in (ADMIN, OWNER, READER_OF_HOT):
        page = full.listed(partial(_first, viewer, wanted))
        # A walk from the newest job to there reads several hundred blocks of the index.
        assert sum(explained(full.world.sql, one).blocks for one in page) < 200


@pytest.mark.parametrize("viewer", VIEWERS.values(), ids=VIEWERS)
def test_a_total_stops_at_its_cap(full: Full, viewer: int | None) -> None:
    scans = full.scans(lambda tx: tx.job_list.total(viewer, EVERYTHING))
    # Whoever sees everything counts the first rows there are, in no order: no index would help.
    assert sum(scan.rows for scan in scans) < 12_000


@pytest.mark.parametrize("view", JobView)
def test_jobs_are_found_by_their_ids(full: Full, view: JobView) -> None:
    job_ids = [row[0] for row in full.world.sql.execute("SELECT job_id FROM jobs LIMIT 64")]
    caller = Caller("pl00007", OWNER)
    scans = full.scans(lambda tx: tx.jobs.find([GetRequest(caller, job_id) for job_id in job_ids], view))
    assert _rows(scans) <= ROUNDED * 64
    assert {scan.index for scan in scans} == {"pk_jobs"}


@pytest.mark.parametrize("planned", Planned, ids=lambda planned: planned.name)
def test_a_batch_is_looked_up_by_keys_however_it_is_planned(full: Full, planned: Planned) -> None:
    found = full.world.sql.execute("SELECT job_id, owner_id, creator_id, request_id FROM jobs LIMIT 64")
    rows = found.fetchall()
    caller = Caller("pl00007", OWNER)
    works: list[Callable[[Transaction], object]] = [
        lambda tx: tx.jobs.find([GetRequest(caller, row[0]) for row in rows], JobView.FULL),
        lambda tx: tx.jobs.find([GetRequest(caller, rows[0][0])], JobView.FULL),
        lambda tx: tx.jobs.by_request_ids([RequestKey(*row[1:]) for row in rows]),
        lambda tx: tx.access.standings([StandingQuestion(Caller("", n), n) for n in range(1, 65)]),
        lambda tx: tx.access.standings([StandingQuestion(caller, 1)]),
    ]
    for work in works:
        for statement in full.listed(work):
            plan = explained(full.world.sql, statement, planned)
            assert {scan.kind for scan in plan.scans} <= {"Index Scan", "Index Only Scan"}, plan
            assert max(scan.rows for scan in plan.scans) <= ROUNDED * 64, plan


def test_locks_and_cancels_go_by_the_primary_key(full: Full) -> None:
    job_ids = [
        row[0] for row in full.world.sql.execute("SELECT job_id FROM jobs WHERE end_time IS NULL LIMIT 64")
    ]

    def work(tx: Transaction) -> None:
        tx.jobs.lock(job_ids, wait=True)
        tx.jobs.cancel(dict.fromkeys(job_ids, ("pl00007", None)))

    scans = full.written(work)
    # Each waits for five others.
    assert _rows(scans) <= (3 + 5) * 64
    assert {scan.index for scan in scans} == {"pk_jobs"}


def test_request_ids_are_found_by_their_index(full: Full) -> None:
    keys = [
        RequestKey(row[0], row[1], row[2])
        for row in full.world.sql.execute("SELECT owner_id, creator_id, request_id FROM jobs LIMIT 64")
    ]
    scans = full.scans(lambda tx: tx.jobs.by_request_ids(keys))
    assert _rows(scans) <= ROUNDED * 64 + 5
    # One of a hundred waits for others, which are looked up.
    assert {scan.index for scan in scans} == {"uq_jobs_request_id", "pk_jobs"}


def test_an_insert_reads_no_other_job(full: Full) -> None:
    job = NewJob(
        dataset_id=1,
        run_type=RunType.IMPORT,
        run_parameters={},
        payload_bytes=2,
        request_hash=b"0" * 32,
        request_id=uuid.uuid4(),
    )
    assert full.written(lambda tx: tx.jobs.insert([JobInsert(uuid.uuid4(), 1, 1, job)])) == []


@pytest.mark.parametrize("dataset_id", [1, DATASETS - 1], ids=["hot", "rare"])
def test_what_a_deleted_data_set_leaves_is_found_among_the_jobs_that_have_not_ended(
    full: Full, dataset_id: int
) -> None:
    gone = DeletedDataset(dataset_id, datetime.now(UTC), Caller("pl00007", OWNER), is_over=False)
    scans = full.scans(lambda tx: tx.deleted_datasets.orphans(gone, 500))
    assert _rows(scans) <= ROUNDED * JOBS / 100
    assert {scan.index for scan in scans} == {"ix_jobs_active_newest"}
