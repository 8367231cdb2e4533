"""Every statement stays flat with a million jobs, on the oldest and the newest Postgres.

What counts is which index a table is read by, how many rows and how many blocks; times are only shown.
"""

import re
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy.sql import Executable
from sqlalchemy.sql.elements import ClauseElement

from jobs_service.model.caller import Caller
from jobs_service.model.job import JobStatus, JobView, NewJob, RunType
from jobs_service.model.requests import Cursor, GetRequest, JobFilter
from jobs_service.model.states import EventType
from jobs_service.storage import access_store, dependency_store, event_store, job_list, job_store
from jobs_service.storage.access_store import StandingQuestion
from jobs_service.storage.database import Transaction
from jobs_service.storage.dependency_store import PICKED, Ended
from jobs_service.storage.event_store import Event
from jobs_service.storage.job_insert import JobInsert
from jobs_service.storage.job_store import RequestKey
from jobs_service.storage.unheard_ends import NEWEST
from tests.support import million
from tests.support.million import HOT_DATASET, HOT_OWNER, RARE_DATASET, RARE_OWNER, VIEWERS
from tests.support.plans import Plan, Planned, Scan, Statement, explained, sent
from tests.support.postgres import PostgresServer
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
Work = Callable[[Transaction], object]


class Full:
    """A database with a million jobs, and some of what is in it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.caller = Caller("mi00007", 7)
        self.job_ids = self._column("SELECT job_id FROM jobs ORDER BY md5(job_id::text) LIMIT 100")
        self.active = self._column("SELECT job_id FROM jobs WHERE end_time IS NULL LIMIT 100")
        found = world.sql.execute(
            "SELECT owner_id, creator_id, request_id FROM jobs WHERE request_id IS NOT NULL LIMIT 100"
        )
        self.keys = [RequestKey(*row) for row in found]
        self.waiting = self._column("SELECT job_id FROM jobs WHERE dependencies > 0 LIMIT 100")
        self.ended = self._column("SELECT job_id FROM ended_dependencies LIMIT 100")

    def _column(self, query: str) -> list[Any]:
        return [row[0] for row in self.world.sql.execute(query.encode())]

    def sent_in_a_snapshot(self, work: Work) -> list[Statement]:
        """What is sent as lists are read, without the setting of the limits itself."""

        def run() -> None:
            with self.world.database.snapshot(seconds=60) as tx:
                work(tx)

        settings, *statements = sent(self.world.database, run)
        assert "force_custom_plan" in settings.parameters.values()
        return statements

    def sent_in_a_transaction(self, work: Work) -> list[Statement]:
        """What is sent as everything else is done; it is taken back."""

        def run() -> None:
            with self.world.database.transaction() as tx:
                work(tx)
                raise InterruptedError

        def interrupted() -> None:
            with pytest.raises(InterruptedError):
                run()

        return sent(self.world.database, interrupted)

    def listed(self, work: Work) -> Plan:
        """What all statements of a list read, together; they are always planned for their values."""
        plans = [explained(self.world.sql, one) for one in self.sent_in_a_snapshot(work)]
        return Plan([scan for plan in plans for scan in plan.scans], sum(plan.blocks for plan in plans))


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


# --- Every statement but those of the lists, for one and for many, however it is planned.

_NAMES = frozenset({"pk_users", "pk_datasets"})
_ACCESS = _NAMES | {"pk_dataset_permissions"}


@dataclass(frozen=True, slots=True)
class Case:
    """A store's method: how it is called for n, by which indexes it reads, how many rows for each of n."""

    send: Callable[..., object]
    indexes: frozenset[str | None]
    rows: int


def _new(n: int) -> list[JobInsert]:
    job = NewJob(
        dataset_id=HOT_DATASET,
        run_type=RunType.IMPORT,
        run_parameters={},
        payload_bytes=2,
        request_hash=b"0" * 32,
        request_id=uuid.uuid4(),
    )
    return [JobInsert(uuid.uuid4(), owner, owner, job) for owner in range(1, n + 1)]


def _events(full: Full, n: int) -> list[Event]:
    moment = datetime.now(UTC)
    return [
        Event(EventType.CREATED, job_id, RunType.IMPORT, full.caller, None, JobStatus.PENDING, moment)
        for job_id in full.job_ids[:n]
    ]


def _finding(view: JobView) -> Case:
    return Case(
        lambda full, tx, n: tx.jobs.find([GetRequest(full.caller, one) for one in full.job_ids[:n]], view),
        _ACCESS | _WAITS | _CLAIMS | {"pk_jobs"},
        # One of ten that are active waits for five others.
        19,
    )


def _reading(view: JobView) -> Case:
    return Case(lambda full, tx, n: tx.jobs.read(full.active[:n], view), _BY_ID, 16)


def _questions(n: int) -> list[StandingQuestion]:
    return [StandingQuestion(Caller(f"mi{one:05}", one), one) for one in range(1, n + 1)]


def _asked(full: Full, n: int) -> list[tuple[int, uuid.UUID]]:
    return [(HOT_OWNER, job_id) for job_id in full.job_ids[:n]]


_WAITS = frozenset({"pk_job_dependencies"})
_CLAIMS = frozenset({"pk_job_attempts", "pk_job_leases"})
_BY_ID = _NAMES | _WAITS | _CLAIMS | {"pk_jobs"}
_DEPENDENCIES = {
    "visible": Case(lambda full, tx, n: tx.dependencies.visible(_asked(full, n)), _ACCESS | {"pk_jobs"}, 4),
    "share": Case(
        lambda full, tx, n: tx.dependencies.share(full.active[:n], wait=True), frozenset({"pk_jobs"}), 1
    ),
    "share free": Case(
        lambda full, tx, n: tx.dependencies.share(full.active[:n], wait=False), frozenset({"pk_jobs"}), 1
    ),
    "insert": Case(
        lambda full, tx, n: tx.dependencies.insert({uuid.uuid4(): full.active[:n]}), frozenset(), 0
    ),
    "unfinished": Case(
        lambda full, tx, n: tx.dependencies.unfinished(full.waiting[:n]), _WAITS | {"pk_jobs"}, 10
    ),
    "dependants": Case(
        lambda full, tx, n: tx.dependencies.dependants([Ended(one) for one in full.ended[:n]], limit=101),
        frozenset({"ix_job_dependencies_depends_on_job_id_job_id", "pk_jobs"}),
        # One of them has 10,000.
        202,
    ),
    "lock_free": Case(
        lambda full, tx, n: tx.dependencies.lock_free(full.active[:n]), frozenset({"pk_jobs"}), 1
    ),
    "existing": Case(
        lambda full, tx, n: tx.dependencies.existing(full.active[:n]), frozenset({"pk_jobs"}), 1
    ),
    "advance": Case(
        lambda full, tx, n: tx.dependencies.advance(dict.fromkeys(full.waiting[:n], 1)),
        _WAITS | {"pk_jobs", "pk_job_queue"},
        13,
    ),
    "pick": Case(
        lambda full, tx, n: tx.dependencies.pick(after=full.ended[0]),
        frozenset({"pk_ended_dependencies"}),
        # As many as one portion takes, whatever n.
        PICKED,
    ),
    "leave": Case(
        lambda full, tx, n: tx.dependencies.leave([Ended(one) for one in full.ended[:n]]), frozenset(), 0
    ),
    "drop": Case(
        lambda full, tx, n: tx.dependencies.drop(full.ended[:n]), frozenset({"pk_ended_dependencies"}), 1
    ),
}
CASES = {
    **{f"DependencyStore.{name}": case for name, case in _DEPENDENCIES.items()},
    **{f"JobStore.find {view.name}": _finding(view) for view in JobView},
    "JobStore.insert": Case(
        lambda _, tx, n: tx.jobs.insert(_new(n)),
        # No data set has a limit here: their table is empty.
        frozenset({"ix_job_queue_last_turn", "pk_dataset_limits", None}),
        1,
    ),
    "JobStore.by_request_ids": Case(
        lambda full, tx, n: tx.jobs.by_request_ids(full.keys[:n]), _BY_ID | {"uq_jobs_request_id"}, 16
    ),
    "JobStore.lock": Case(lambda full, tx, n: tx.jobs.lock(full.active[:n], wait=True), _BY_ID, 16),
    "JobStore.lock free": Case(lambda full, tx, n: tx.jobs.lock(full.active[:n], wait=False), _BY_ID, 16),
    **{f"JobStore.read {view.name}": _reading(view) for view in JobView},
    "JobStore.cancel": Case(
        lambda full, tx, n: tx.jobs.cancel(dict.fromkeys(full.active[:n], ("mi00007", None))),
        frozenset({"pk_jobs"}),
        1,
    ),
    "UnheardEnds.note": Case(
        lambda _, tx, n: tx.unheard_ends.note(NEWEST, n),
        _WAITS | {"pk_jobs", "ix_jobs_active_newest"},
        # A job with ten dependencies reads each of them, and its row there.
        21,
    ),
    "EventStore.append": Case(lambda full, tx, n: tx.events.append(_events(full, n)), frozenset(), 0),
    "AccessStore.standings": Case(lambda _, tx, n: tx.access.standings(_questions(n)), _ACCESS, 4),
    "AccessStore.keep_datasets": Case(
        lambda _, tx, n: tx.access.keep_datasets(range(1, n + 1), wait=True), frozenset({"pk_datasets"}), 1
    ),
    "AccessStore.keep_datasets free": Case(
        lambda _, tx, n: tx.access.keep_datasets(range(1, n + 1), wait=False), frozenset({"pk_datasets"}), 1
    ),
    "AccessStore.user_exists": Case(lambda _, tx, n: tx.access.user_exists(n), frozenset({"pk_users"}), 1),
    "AccessStore.user_ids": Case(
        # Of a hundred, it rightly reads the 2,500 users that there are.
        lambda _, tx, n: tx.access.user_ids([f"mi{one:05}" for one in range(1, min(n, 8) + 1)]),
        frozenset({"uq_users_soeid"}),
        1,
    ),
}
BY_HAND = {"is_empty", "put_user", "put_dataset", "dataset_exists", "grant", "revoke", "grant_run_type"}
"""What only the command line sends, one at a time."""
LISTED = {"JobList.newest", "JobList.total"}


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
    )
    methods = {
        f"{store.__name__}.{name}"
        for store in stores
        for name in vars(store)
        if not name.startswith("_") and name not in BY_HAND
    }
    assert methods == {name.split(" ")[0] for name in CASES} | LISTED


def test_every_statement_of_a_module_is_looked_at(full: Full) -> None:
    written = {
        f"{module.__name__}.{name}": str(statement.compile(dialect=full.world.database.engine.dialect))
        for module in (dependency_store, job_store, event_store, access_store, job_list)
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


@pytest.mark.parametrize("wanted", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("viewer", VIEWERS.values(), ids=VIEWERS)
def test_a_first_page_reads_little_whatever_the_filter(
    full: Full, viewer: int | None, wanted: JobFilter
) -> None:
    plan = full.listed(_page(viewer, wanted))
    assert _whole_tables(plan.scans) == []
    assert plan.blocks <= _MANY_BLOCKS * (2 if viewer == million.READER_OF_500_RARE else 1), plan
    assert sum(scan.rows for scan in plan.scans if scan.table == "jobs") <= 0.1 * million.JOBS, plan


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
