"""What a call about many jobs chooses stays flat with a million that have ended and 100,000 that wait.

What counts is which index the jobs are read by, how many rows and how many blocks; times are only shown.
"""

import statistics
import time
from collections.abc import Iterator

import pytest

from jobs_service.model.job import JobStatus, RunType
from jobs_service.model.requests import JobFilter
from jobs_service.model.states import ACTIVE
from tests.support import million
from tests.support.million import HOT_DATASET, HOT_OWNER, RARE_DATASET, RARE_OWNER, VIEWERS
from tests.support.plans import Plan, explained, sent
from tests.support.postgres import PostgresServer
from tests.support.world import World

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

PENDING = 100_000
LIMIT = 1_001
BLOCKS = 10_000
ROUNDED = 2
"""Rows too many where several processes read: what is told is their average, times their number."""
INDEXES = {
    "ix_jobs_active_newest",
    "ix_jobs_dataset_newest",
    "ix_jobs_owner_newest",
    "ix_jobs_external_newest",
}
FILTERS = {
    "active": JobFilter(statuses=ACTIVE),
    "running": JobFilter(statuses=frozenset({JobStatus.RUNNING})),
    "a run type of ten percent": JobFilter(run_types=frozenset({RunType.EXPLORATION})),
    "a rare data set": JobFilter(dataset_id=RARE_DATASET),
    "the hot data set": JobFilter(dataset_id=HOT_DATASET),
    "the hot owner": JobFilter(owner_id=HOT_OWNER),
    "a rare owner": JobFilter(owner_id=RARE_OWNER),
    "the hot owner's of the hot data set": JobFilter(owner_id=HOT_OWNER, dataset_id=HOT_DATASET),
    "nightly ones of the hot owner": JobFilter(owner_id=HOT_OWNER, external_id="nightly"),
    "an external id of five percent": JobFilter(external_id="nightly"),
    "a rare external id": JobFilter(external_id="ext-77"),
}


@pytest.fixture(scope="module")
def full(postgres: PostgresServer) -> Iterator[World]:
    world = World(postgres.new_database())
    try:
        million.fill(world.sql, pending=PENDING)
        readers = [user_id for user_id in VIEWERS.values() if user_id]
        world.sql.execute(
            "UPDATE dataset_permissions SET level = 'write' WHERE user_id = ANY(%s)", (readers,)
        )
        yield world
    finally:
        world.close()


def _choose(world: World, actor: int | None, wanted: JobFilter) -> None:
    with world.database.snapshot(seconds=60) as tx:
        tx.job_choice.cancellable(actor, wanted, limit=LIMIT)


def _plan(world: World, actor: int | None, wanted: JobFilter) -> Plan:
    settings, *statements = sent(world.database, lambda: _choose(world, actor, wanted))
    assert "force_custom_plan" in settings.parameters.values()
    [statement] = statements
    return explained(world.sql, statement)


@pytest.mark.parametrize("actor", VIEWERS.values(), ids=VIEWERS)
def test_no_more_is_read_than_what_has_not_ended(
    full: World, actor: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    [[active]] = full.sql.execute("SELECT count(*) FROM jobs WHERE end_time IS NULL")
    lines = []
    for name, wanted in FILTERS.items():
        plan = _plan(full, actor, wanted)
        scans = [scan for scan in plan.scans if scan.table == "jobs"]
        assert {scan.index for scan in scans} <= INDEXES, name
        assert sum(scan.rows for scan in scans) <= active + ROUNDED, name
        assert plan.blocks <= BLOCKS, name
        lines.append(f"{name:36}{_milliseconds(full, actor, wanted):8.1f} ms{plan.blocks:8} blocks")
    with capsys.disabled():
        print("\n" + f"Postgres {full.sql.info.server_version // 10_000}\n" + "\n".join(lines))


def _milliseconds(world: World, actor: int | None, wanted: JobFilter) -> float:
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        _choose(world, actor, wanted)
        times.append((time.perf_counter() - begin) * 1000)
    return statistics.median(times)
