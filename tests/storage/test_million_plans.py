"""Every statement stays flat with a million jobs, on the oldest and the newest Postgres.

What counts is which index a table is read by, how many rows and how many blocks; times are only shown.
"""

import re
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from sqlalchemy.sql import Executable
from sqlalchemy.sql.elements import ClauseElement

from jobs_service.model.job import JobStatus, RunType
from jobs_service.model.requests import Cursor, JobFilter
from jobs_service.storage import (
    access_store,
    dependency_store,
    event_store,
    job_list,
    job_store,
    unheard_ends,
)
from tests.support import million
from tests.support.full_database import Full, Work
from tests.support.million import HOT_DATASET, HOT_OWNER, RARE_DATASET, RARE_OWNER, VIEWERS
from tests.support.plans import Planned, Scan, explained
from tests.support.postgres import PostgresServer
from tests.support.store_cases import CASES, LISTED, Case
from tests.support.world import World

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

_WORKED_ON = """
INSERT INTO job_leases
     SELECT job_id, 1, 1, gen_random_uuid(), 'worker', dataset_id, false, now(), now(), interval '1 min',
            now()
       FROM jobs WHERE status = 'RUNNING';
INSERT INTO job_attempts
     SELECT job_id, 1, 1, gen_random_uuid(), 'worker', now(), now(), 'FAILED', 'ValueError', 'no', true, false
       FROM jobs WHERE status = 'FAILED'
"""
_QUEUE = """
INSERT INTO job_queue
     SELECT job_id, run_type, 0, 1, dataset_id, 20, create_time, true, false, false
       FROM jobs WHERE status = 'PENDING' AND dependencies = 0
"""
PAGE = 100
DEEP = 1_000 * PAGE


@pytest.fixture(scope="module")
def full(postgres: PostgresServer) -> Iterator[Full]:
    world = World(postgres.new_database())
    try:
        million.fill(world.sql)
        world.sql.execute(_QUEUE)
        world.sql.execute("VACUUM ANALYZE job_queue")
        world.sql.execute(_WORKED_ON)
        world.sql.execute("VACUUM ANALYZE job_leases, job_attempts")
        yield Full(world)
    finally:
        world.close()


@pytest.fixture(scope="module")
def tidied(full: Full) -> None:
    """Without the dead rows that calls taken back have left among the jobs; a list would read them too."""
    full.world.sql.execute("VACUUM (INDEX_CLEANUP ON) jobs")


# --- Every statement but those of the lists, for one and for many, however it is planned.


@pytest.mark.parametrize("n", [1, 8, 100])
@pytest.mark.parametrize("planned", Planned, ids=lambda planned: planned.name)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_statement_goes_by_its_index(full: Full, case: Case, planned: Planned, n: int) -> None:
    statements = full.sent_in_a_transaction(lambda tx: case.send(full, tx, n))
    plans = [explained(full.world.sql, one, planned) for one in statements]
    assert plans
    for plan in plans:
        assert {scan.index for scan in plan.scans} <= case.indexes, plan
        assert sum(scan.rows for scan in plan.scans) <= case.rows * n, plan


def test_every_method_of_a_store_is_looked_at() -> None:
    stores = (
        dependency_store.DependencyStore,
        job_store.JobStore,
        event_store.EventStore,
        access_store.AccessStore,
        job_list.JobList,
        unheard_ends.UnheardEnds,
    )
    methods = {
        f"{store.__name__}.{name}" for store in stores for name in vars(store) if not name.startswith("_")
    }
    assert methods == {name.split(" ")[0] for name in CASES} | LISTED


def test_every_statement_of_a_module_is_looked_at(full: Full) -> None:
    written = {
        f"{module.__name__}.{name}": str(statement.compile(dialect=full.world.database.engine.dialect))
        for module in (dependency_store, job_store, event_store, access_store, job_list, unheard_ends)
        for name, found in vars(module).items()
        for statement in (found.values() if isinstance(found, dict) else [found])
        if isinstance(statement, Executable) and isinstance(statement, ClauseElement) and name.isupper()
    }
    seen = {
        statement.sql
        for case in CASES.values()
        for statement in full.sent_in_a_transaction(partial(case.send, full, n=1))
    }
    for wanted in (JobFilter(), JobFilter(dataset_id=RARE_DATASET)):
        seen |= {one.sql for one in full.sent_in_a_snapshot(_page(million.STRANGER, wanted))}
    assert len(written) >= 10
    unseen = {name for name, text in written.items() if not any(map(_as_sent(text).fullmatch, seen))}
    assert unseen == set()


def _as_sent(text: str) -> re.Pattern[str]:
    """A compiled statement, with anything in place of what is written out only when it is sent."""
    parts = re.split(r"__\[POSTCOMPILE_\w+\]", text)
    return re.compile(".+?".join(map(re.escape, parts)), re.DOTALL)


# --- Lists.

FAILED, CANCELLED, ACTIVE, COMPLETED = (
    frozenset({JobStatus.FAILED}),
    frozenset({JobStatus.CANCELLED}),
    frozenset({JobStatus.PENDING, JobStatus.RUNNING}),
    frozenset({JobStatus.COMPLETED}),
)
RARE_TYPE = frozenset({RunType.EXPLORATION})
START = datetime(2026, 1, 1, tzinfo=UTC)


def _days(first: int, last: int | None = None) -> tuple[datetime, datetime | None]:
    return START + timedelta(days=first), None if last is None else START + timedelta(days=last)


OLD, NEW = _days(30, 40), _days(200)
FILTERS = {
    "everything": JobFilter(),
    "failed": JobFilter(statuses=FAILED),
    "cancelled, none of late": JobFilter(statuses=CANCELLED),
    "completed": JobFilter(statuses=COMPLETED),
    "active": JobFilter(statuses=ACTIVE),
    "running": JobFilter(statuses=frozenset({JobStatus.RUNNING})),
    "all but completed": JobFilter(statuses=FAILED | CANCELLED | ACTIVE),
    "failed or pending": JobFilter(statuses=FAILED | {JobStatus.PENDING}),
    "a run type of ten percent": JobFilter(run_types=RARE_TYPE),
    "failed of that type": JobFilter(run_types=RARE_TYPE, statuses=FAILED),
    "a rare data set": JobFilter(dataset_id=RARE_DATASET),
    "the hot data set": JobFilter(dataset_id=HOT_DATASET),
    "failed of the hot data set": JobFilter(dataset_id=HOT_DATASET, statuses=FAILED),
    "cancelled of the hot data set": JobFilter(dataset_id=HOT_DATASET, statuses=CANCELLED),
    "the hot owner": JobFilter(owner_id=HOT_OWNER),
    "a rare owner": JobFilter(owner_id=RARE_OWNER),
    "failed of the hot owner": JobFilter(owner_id=HOT_OWNER, statuses=FAILED),
    "that type of the hot owner": JobFilter(owner_id=HOT_OWNER, run_types=RARE_TYPE),
    "the hot owner's of the hot data set": JobFilter(owner_id=HOT_OWNER, dataset_id=HOT_DATASET),
    "an external id of five percent": JobFilter(external_id="nightly"),
    "a rare external id": JobFilter(external_id="ext-77"),
    "ten old days": JobFilter(create_time_from=OLD[0], create_time_to=OLD[1]),
    "new ones": JobFilter(create_time_from=NEW[0]),
    "failed of ten old days": JobFilter(create_time_from=OLD[0], create_time_to=OLD[1], statuses=FAILED),
    "cancelled of the new ones": JobFilter(create_time_from=NEW[0], statuses=CANCELLED),
}
_MANY_BLOCKS = 5_000


def _page(viewer: int | None, wanted: JobFilter, cursor: Cursor | None = None) -> Work:
    return lambda tx: tx.job_list.newest(viewer, wanted, cursor=cursor, skip=0, limit=PAGE + 1)


def _total(viewer: int | None, wanted: JobFilter) -> Work:
    return lambda tx: tx.job_list.total(viewer, wanted)


def _whole_tables(scans: list[Scan]) -> list[Scan]:
    return [scan for scan in scans if scan.kind == "Seq Scan" and scan.table in {"jobs", "job_events"}]


@pytest.mark.usefixtures("tidied")
@pytest.mark.parametrize("wanted", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("viewer", VIEWERS.values(), ids=VIEWERS)
def test_a_first_page_reads_little_whatever_the_filter(
    full: Full, viewer: int | None, wanted: JobFilter
) -> None:
    plan = full.listed(_page(viewer, wanted))
    assert _whole_tables(plan.scans) == []
    assert plan.blocks <= _MANY_BLOCKS * (2 if viewer == million.READER_OF_500_RARE else 1), plan
    assert sum(scan.rows for scan in plan.scans if scan.table == "jobs") <= 0.1 * million.JOBS, plan


@pytest.mark.usefixtures("tidied")
@pytest.mark.parametrize("wanted", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("viewer", VIEWERS.values(), ids=VIEWERS)
def test_a_total_reads_little_whatever_the_filter(full: Full, viewer: int | None, wanted: JobFilter) -> None:
    plan = full.listed(_total(viewer, wanted))
    # Of an unbounded filter that a tenth passes, ten times the cap is read, one row after the other.
    assert plan.blocks <= 25_000, plan
    assert sum(scan.rows for scan in plan.scans if scan.table == "jobs") <= 0.125 * million.JOBS, plan


def test_a_page_is_found_by_an_index_before_anything_was_analyzed(full: Full) -> None:
    works = [
        _page(viewer, wanted)
        for name, wanted in FILTERS.items()
        for viewer in (None, RARE_OWNER, million.READER_OF_HOT, million.READER_OF_50, million.STRANGER)
        if "failed" not in name
    ]
    statements = [one for work in works for one in full.sent_in_a_snapshot(work)]
    with full.world.sql.transaction(force_rollback=True):
        # Nor does the server know which pages of the table it need not look at.
        full.world.sql.execute(
            "DELETE FROM pg_statistic WHERE starelid IN ('jobs'::regclass, 'dataset_permissions'::regclass)"
        )
        full.world.sql.execute(
            "UPDATE pg_class SET reltuples = -1, relpages = 0, relallvisible = 0 WHERE relname = 'jobs'"
        )
        for statement in statements:
            plan = explained(full.world.sql, statement)
            assert _whole_tables(plan.scans) == [], statement
            assert sum(scan.rows for scan in plan.scans if scan.table == "jobs") <= 0.125 * million.JOBS


_PLACE = """
SELECT create_time, job_id FROM (
       SELECT create_time, job_id, row_number() OVER (ORDER BY create_time DESC, job_id DESC) AS place,
              count(*) OVER () AS visible
         FROM jobs
        WHERE %(viewer)s::bigint IS NULL OR owner_id = %(viewer)s OR creator_id = %(viewer)s
           OR dataset_id IN (SELECT dataset_id FROM dataset_permissions WHERE user_id = %(viewer)s)) placed
 WHERE place = least(%(deep)s, visible - %(page)s - 1)
"""


def _deep(full: Full, viewer: int | None) -> Cursor | None:
    """Where the 1,000th page begins, or the last full one; None for who has only one."""
    row = full.world.sql.execute(_PLACE, {"viewer": viewer, "deep": DEEP, "page": PAGE}).fetchone()
    return None if row is None else Cursor(row[0], row[1])


def _milliseconds(full: Full, works: list[Work]) -> list[float]:
    """The median time of each, all taken in turns."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(7):
        for taken, work in zip(times, works, strict=True):
            begin = time.perf_counter()
            with full.world.database.snapshot(seconds=60) as tx:
                work(tx)
            taken.append((time.perf_counter() - begin) * 1000)
    return [statistics.median(taken) for taken in times]


def test_the_thousandth_page_costs_what_the_first_does(
    full: Full, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{'':36}{'first page':>28}{'1,000th or last':>28}"]
    too_much = []
    for name, viewer in VIEWERS.items():
        works = [_page(viewer, JobFilter()), _page(viewer, JobFilter(), _deep(full, viewer))]
        plans = [full.listed(work) for work in works]
        rows = [sum(scan.rows for scan in plan.scans if scan.table == "jobs") for plan in plans]
        shown = zip(_milliseconds(full, works), rows, plans, strict=True)
        lines.append(
            f"{name:36}" + "".join(f"{ms:9.1f} ms {row:6} r {plan.blocks:6} b" for ms, row, plan in shown)
        )
        if plans[1].blocks > 2 * plans[0].blocks:
            too_much.append(name)
    with capsys.disabled():
        print("\n" + full.world.sql.info.server_version.__str__())
        print("\n".join(lines))
    assert too_much == []
