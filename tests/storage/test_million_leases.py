"""With a million jobs, and a lease for every one that runs, claims end and leases are found by their keys."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy.sql import Executable
from sqlalchemy.sql.elements import ClauseElement

from jobs_service.model.endings import ending
from jobs_service.model.work import Completion
from jobs_service.storage import ending_store, lease_store, retry_store
from jobs_service.storage.database import Transaction
from jobs_service.storage.ending_store import EndingStore
from jobs_service.storage.lease_store import LeaseStore, Token
from jobs_service.storage.retry_store import RetryStore
from tests.support import million
from tests.support.plans import Planned, Statement, explained, sent
from tests.support.postgres import PostgresServer
from tests.support.work import LONG_AGO
from tests.support.world import World

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

DONE = Completion(output_summary={"rows": 1}, summary_bytes=10, output_commit_id=None)


class Full:
    """A database with a million jobs and thousands of leases, and some of what is in it."""

    def __init__(self, world: World) -> None:
        self.world = world
        found = world.sql.execute("SELECT job_id, lease_token FROM job_leases LIMIT 100")
        self.tokens = [Token(*row) for row in found]
        failed = world.sql.execute("SELECT job_id FROM jobs WHERE status = 'FAILED' LIMIT 100")
        self.failed = [row[0] for row in failed]

    def sent(self, work: Callable[[Transaction], object]) -> list[Statement]:
        """What is sent in a transaction, which is taken back."""

        def run() -> None:
            with self.world.database.transaction() as tx:
                work(tx)
                raise InterruptedError

        def interrupted() -> None:
            with pytest.raises(InterruptedError):
                run()

        return sent(self.world.database, interrupted)


@pytest.fixture(scope="module")
def full(postgres: PostgresServer) -> Iterator[Full]:
    world = World(postgres.new_database())
    try:
        million.fill(world.sql)
        million.claim(world.sql)
        yield Full(world)
    finally:
        world.close()


@dataclass(frozen=True, slots=True)
class Case:
    """A store's method: how it is called for n, by which indexes it reads, how many rows for each of n."""

    send: Callable[[Full, Transaction, int], object]
    indexes: frozenset[str | None]
    rows: int


def _tokens(full: Full, n: int) -> dict[Any, list[Any]]:
    return {one.job_id: [one.lease_token] for one in full.tokens[:n]}


def _end(full: Full, tx: Transaction, n: int) -> object:
    held = tx.endings.hold(_tokens(full, n), wait=True)
    return tx.endings.end([ending(job, DONE) for job in held.values()])


def _renew(wait: bool, full: Full, tx: Transaction, n: int) -> object:
    return tx.leases.renew([(one, timedelta(minutes=1)) for one in full.tokens[:n]], wait=wait)


def _ids(full: Full, n: int) -> list[Any]:
    return [one.job_id for one in full.tokens[:n]]


_JOBS: frozenset[str | None] = frozenset({"pk_jobs"})
_LEASES: frozenset[str | None] = frozenset({"pk_job_leases"})
CASES = {
    "EndingStore.hold": Case(lambda full, tx, n: tx.endings.hold(_tokens(full, n), wait=True), _JOBS, 1),
    "EndingStore.hold free": Case(
        lambda full, tx, n: tx.endings.hold(_tokens(full, n), wait=False), _JOBS, 1
    ),
    "EndingStore.take": Case(lambda full, tx, n: tx.endings.take(_ids(full, n)), _JOBS, 1),
    "EndingStore.end": Case(_end, _JOBS | _LEASES, 2),
    "EndingStore.revoke": Case(lambda full, tx, n: tx.endings.revoke(_ids(full, n)), _JOBS | _LEASES, 3),
    "LeaseStore.report": Case(
        lambda full, tx, n: tx.leases.report([(one, {"percent": 1.5}) for one in full.tokens[:n]]), _JOBS, 2
    ),
    "LeaseStore.renew": Case(partial(_renew, True), _JOBS | _LEASES, 3),
    "LeaseStore.renew free": Case(partial(_renew, False), _JOBS | _LEASES, 3),
    "LeaseStore.standings": Case(
        lambda full, tx, n: tx.leases.standings(full.tokens[:n]), _JOBS | _LEASES | {"pk_job_attempts"}, 3
    ),
    "LeaseStore.now": Case(lambda _, tx, __: tx.leases.now(), frozenset(), 0),
    "LeaseStore.candidates": Case(
        lambda _, tx, n: tx.leases.candidates(since=LONG_AGO, limit=n), frozenset({"ix_job_leases_expiry"}), 1
    ),
    "LeaseStore.lock_overdue": Case(
        lambda full, tx, n: tx.leases.lock_overdue(_ids(full, n), since=LONG_AGO),
        # Of many it may take both indexes, and what they have in common.
        _LEASES | {"ix_job_leases_expiry", None},
        1,
    ),
    "RetryStore.keep_waiting": Case(lambda full, tx, n: tx.retries.keep_waiting(full.failed[:n]), _JOBS, 1),
    "RetryStore.retry": Case(lambda full, tx, n: tx.retries.retry(full.failed[:n]), _JOBS, 1),
}


@pytest.mark.parametrize("n", [1, 8, 100])
@pytest.mark.parametrize("planned", Planned, ids=lambda planned: planned.name)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_statement_goes_by_its_index(full: Full, case: Case, planned: Planned, n: int) -> None:
    for statement in full.sent(lambda tx: case.send(full, tx, n)):
        plan = explained(full.world.sql, statement, planned)
        assert {scan.index for scan in plan.scans} <= case.indexes, plan
        # Postgres 18 tells rows as an average over the loops, to two places.
        assert sum(scan.rows for scan in plan.scans) <= 1.05 * case.rows * n, plan


def test_after_a_start_the_sweep_passes_over_each_expired_lease_once(
    full: Full, capsys: pytest.CaptureFixture[str]
) -> None:
    with full.world.sql.transaction(force_rollback=True):
        expired = full.world.sql.execute("UPDATE job_leases SET lease_expire_time = now()").rowcount
        since = full.world.sql.execute("SELECT now()").fetchone()
        assert since is not None
        [statement] = full.sent(lambda tx: tx.leases.candidates(since=since[0], limit=100))
        begin = time.perf_counter()
        plan = explained(full.world.sql, statement)
        milliseconds = (time.perf_counter() - begin) * 1000
    with capsys.disabled():
        version = full.world.sql.info.server_version // 10_000
        print(f"\nPostgres {version}: {expired} expired, none to be taken back: {milliseconds:.1f} ms")
    assert {scan.index for scan in plan.scans} == {"ix_job_leases_expiry"}
    assert 0 < sum(scan.rows for scan in plan.scans) <= expired


def test_what_it_costs_is_shown(full: Full, capsys: pytest.CaptureFixture[str]) -> None:
    lines = []
    for name, case in CASES.items():
        for n in (1, 100):
            plans = [
                explained(full.world.sql, one, Planned.GENERIC)
                for one in full.sent(partial(_sent, case, full, n))
            ]
            rows = sum(scan.rows for plan in plans for scan in plan.scans)
            blocks = sum(plan.blocks for plan in plans)
            lines.append(f"{name:28}{n:5}{_milliseconds(full, case, n):9.1f} ms {rows:6} r {blocks:6} b")
    with capsys.disabled():
        print("\n" + str(full.world.sql.info.server_version))
        print("\n".join(lines))


def _sent(case: Case, full: Full, n: int, tx: Transaction) -> object:
    return case.send(full, tx, n)


def _milliseconds(full: Full, case: Case, n: int) -> float:
    times = []
    for _ in range(12):
        begin = time.perf_counter()
        full.sent(partial(_sent, case, full, n))
        times.append((time.perf_counter() - begin) * 1000)
    return statistics.median(times)


def test_every_method_and_every_statement_is_looked_at(full: Full) -> None:
    methods = {
        f"{store.__name__}.{name}"
        for store in (EndingStore, LeaseStore, RetryStore)
        for name in vars(store)
        if not name.startswith("_")
    }
    assert methods == {name.split(" ")[0] for name in CASES}
    dialect = full.world.database.engine.dialect
    modules: tuple[ModuleType, ...] = (ending_store, lease_store, retry_store)
    written = {
        f"{module.__name__}.{name}": str(found.compile(dialect=dialect))
        for module in modules
        for name, found in vars(module).items()
        if isinstance(found, Executable) and isinstance(found, ClauseElement) and name.isupper()
    }
    seen = {one.sql for case in CASES.values() for one in full.sent(partial(_sent, case, full, 1))}
    assert len(written) >= 12
    assert {name for name, text in written.items() if text not in seen} == set()
