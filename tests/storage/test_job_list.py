"""JobList against a naive model: the same jobs filtered, sorted and cut in plain Python."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from jobs_service.model.job import JobStatus, RunType
from jobs_service.model.requests import Cursor, JobFilter
from jobs_service.model.states import TERMINAL
from jobs_service.storage.job_list import TOTAL_CAP, JobList
from tests.support.postgres import PostgresServer
from tests.support.world import User, World

JOBS = 5_000
MOMENTS = 150
"""So few that about 30 jobs share each create_time."""
DATASETS = range(1, 401)
READABLE_BY_MANY = range(50, 350)
START = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)

_INSERT = """
    INSERT INTO jobs (job_id, run_type, status, dataset_id, owner_id, creator_id, external_id, priority,
                      create_time, end_time, error_type, cancelled_by_soeid, payload_bytes,
                      run_parameters, output_summary)
    VALUES (%s, %s, %s, %s, %s, %s, %s, 0, %s, %s, %s, %s, 2, %s, %s)
"""


@dataclass(frozen=True, slots=True)
class Row:
    """What a list looks at."""

    job_id: UUID
    run_type: RunType
    status: JobStatus
    dataset_id: int
    owner_id: int
    creator_id: int
    external_id: str | None
    create_time: datetime

    @property
    def place(self) -> tuple[datetime, UUID]:
        return self.create_time, self.job_id


@dataclass(frozen=True, slots=True)
class Populated:
    """A database with jobs in it, and the same jobs in memory, newest first."""

    world: World
    rows: Sequence[Row]
    viewers: dict[str, int | None]
    readable: dict[int, frozenset[int]]

    def matching(self, viewer: int | None, wanted: JobFilter) -> list[Row]:
        """The model: every job, one after the other."""
        return [row for row in self.rows if self._visible(viewer, row) and _matches(wanted, row)]

    def _visible(self, viewer: int | None, row: Row) -> bool:
        return (
            viewer is None
            or viewer in (row.owner_id, row.creator_id)
            or row.dataset_id in self.readable.get(viewer, ())
        )


def _matches(wanted: JobFilter, row: Row) -> bool:
    checks = [
        wanted.owner_id is None or row.owner_id == wanted.owner_id,
        wanted.dataset_id is None or row.dataset_id == wanted.dataset_id,
        not wanted.statuses or row.status in wanted.statuses,
        not wanted.run_types or row.run_type in wanted.run_types,
        wanted.external_id is None or row.external_id == wanted.external_id,
        wanted.create_time_from is None or row.create_time >= wanted.create_time_from,
        wanted.create_time_to is None or row.create_time < wanted.create_time_to,
    ]
    return all(checks)


class Draw:
    """Everything that is left to chance, from one fixed seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def moment(self) -> datetime:
        return START + self.random.randrange(MOMENTS) * SECOND

    def row(self, users: dict[str, User]) -> Row:
        """A job; the oldest of all belong to `early`, where no window of the newest reaches."""
        moment = self.moment()
        makers = ["owner", "owner", "program", "reader of one", "somebody", "somebody else"]
        owner = "early" if moment < START + 12 * SECOND else self.random.choice(makers)
        creator = "program" if self.random.random() < 0.15 else owner
        return Row(
            job_id=UUID(int=self.random.getrandbits(128)),
            run_type=self.random.choice(list(RunType)),
            status=self.random.choice(list(JobStatus)),
            # Half of them on a few busy data sets.
            dataset_id=self.random.choice([1, 2, 3, 60] if self.random.random() < 0.5 else list(DATASETS)),
            owner_id=users[owner].user_id,
            creator_id=users[creator].user_id,
            external_id=self.random.choice([None, "a", "b", "A"]),
            create_time=moment,
        )

    def filter(self, owners: Sequence[int]) -> JobFilter:
        """A filter of any of the fields, of none quite often."""
        choose = self.random.choice
        makers: dict[str, Any] = {
            "owner_id": lambda: choose([*owners, 10**9]),
            "dataset_id": lambda: choose([1, 60, 399, 10**9]),
            "statuses": lambda: frozenset(self.random.sample(list(JobStatus), choose([1, 2]))),
            "run_types": lambda: frozenset(self.random.sample(list(RunType), choose([1, 2]))),
            "external_id": lambda: choose(["a", "A", "", "nobody's"]),
            "create_time_from": self.moment,
            "create_time_to": self.moment,
        }
        given = self.random.sample(sorted(makers), choose([0, 0, 1, 1, 2, 3]))
        return JobFilter(**{name: makers[name]() for name in given})

    def cursor(self, rows: Sequence[Row]) -> Cursor | None:
        """A job's place, a place where no job is, or the beginning."""
        row = self.random.choice(rows)
        somewhere = UUID(int=self.random.getrandbits(128))
        return self.random.choice(
            [None, None, Cursor(row.create_time, row.job_id), Cursor(row.create_time, somewhere)]
        )


def insert(world: World, rows: Sequence[Row]) -> None:
    with world.sql.cursor() as cursor:
        cursor.executemany(
            _INSERT,
            [
                (
                    row.job_id,
                    row.run_type.value,
                    row.status.value,
                    row.dataset_id,
                    row.owner_id,
                    row.creator_id,
                    row.external_id,
                    row.create_time,
                    row.create_time if row.status in TERMINAL else None,
                    "ValueError" if row.status is JobStatus.FAILED else None,
                    "us00000" if row.status is JobStatus.CANCELLED else None,
                    json.dumps({"of": str(row.job_id)}),
                    '{"rows": 1}' if row.status is JobStatus.COMPLETED else None,
                )
                for row in rows
            ],
        )


def allow(world: World, user: User, datasets: Sequence[int]) -> None:
    world.sql.execute(
        "INSERT INTO dataset_permissions SELECT %s, unnest(%s::bigint[]), 'read'",
        (user.user_id, list(datasets)),
    )


@pytest.fixture(scope="module")
def populated(postgres: PostgresServer) -> Iterator[Populated]:
    """The tests here only read, so they share the jobs, one database on each Postgres."""
    world = World(postgres.new_database())
    names = ["owner", "program", "reader of one", "reader of 300", "early", "stranger", "somebody"]
    users = {name: world.user() for name in [*names, "somebody else"]}
    world.sql.execute(
        "INSERT INTO datasets SELECT n, 'data set ' || n FROM generate_series(1, %s) AS n", (len(DATASETS),)
    )
    readable = {"reader of one": [399], "reader of 300": list(READABLE_BY_MANY), "owner": [1, 7]}
    for name, datasets in readable.items():
        allow(world, users[name], datasets)
    draw = Draw(20260101)
    rows = sorted((draw.row(users) for _ in range(JOBS)), key=lambda row: row.place, reverse=True)
    insert(world, rows)
    yield Populated(
        world,
        rows,
        {"admin": None} | {name: users[name].user_id for name in names},
        {users[name].user_id: frozenset(datasets) for name, datasets in readable.items()},
    )
    world.close()


def page_of(
    populated: Populated,
    viewer: int | None,
    wanted: JobFilter,
    *,
    cursor: Cursor | None = None,
    skip: int = 0,
    limit: int,
) -> list[UUID]:
    with populated.world.database.snapshot(seconds=10) as tx:
        page = tx.job_list.newest(viewer, wanted, cursor=cursor, skip=skip, limit=limit)
    return [job.job_id for job in page]


def ids(rows: Sequence[Row]) -> list[UUID]:
    return [row.job_id for row in rows]


def test_a_page_and_its_total_are_what_the_model_says(populated: Populated) -> None:
    draw = Draw(1)
    owners = [user_id for user_id in populated.viewers.values() if user_id is not None]
    for number in range(600):
        name, viewer = draw.random.choice(sorted(populated.viewers.items()))
        wanted, cursor = draw.filter(owners), draw.cursor(populated.rows)
        skip, limit = draw.random.choice([0, 0, 1, 5, 700]), draw.random.choice([1, 2, 8, 101, 1001])
        case = f"case {number}: {name}, {wanted}, after {cursor}, skip {skip}, limit {limit}"
        matching = populated.matching(viewer, wanted)
        rest = [row for row in matching if cursor is None or row.place < (cursor.create_time, cursor.job_id)]
        page = page_of(populated, viewer, wanted, cursor=cursor, skip=skip, limit=limit)
        assert page == ids(rest[skip : skip + limit]), case
        with populated.world.database.snapshot(seconds=10) as tx:
            assert tx.job_list.total(viewer, wanted) == len(matching), case


def test_a_page_is_no_longer_than_asked_when_jobs_are_skipped(populated: Populated) -> None:
    for name, viewer in populated.viewers.items():
        rest = populated.matching(viewer, JobFilter())[5:]
        assert page_of(populated, viewer, JobFilter(), skip=5, limit=3) == ids(rest[:3]), name


@pytest.mark.parametrize("limit", [97, 1000])
def test_page_after_page_shows_every_job_once(populated: Populated, limit: int) -> None:
    filters = [JobFilter(), JobFilter(run_types=frozenset({RunType.IMPORT}))]
    places = {row.job_id: row for row in populated.rows}
    for wanted in filters:
        for name, viewer in populated.viewers.items():
            shown: list[UUID] = []
            cursor: Cursor | None = None
            while page := page_of(populated, viewer, wanted, cursor=cursor, limit=limit):
                shown += page
                last = places[page[-1]]
                cursor = Cursor(last.create_time, last.job_id)
            assert shown == ids(populated.matching(viewer, wanted)), f"{name}, {wanted}"


def test_the_viewers_differ_and_ties_are_many(populated: Populated) -> None:
    """The tests above would prove little if everybody saw the same, or everything stood in the window."""
    totals = {
        name: len(populated.matching(viewer, JobFilter())) for name, viewer in populated.viewers.items()
    }
    assert totals["stranger"] == 0
    assert totals["admin"] == JOBS
    assert 0 < totals["reader of one"] < totals["reader of 300"] < JOBS
    newest_early = next(
        n for n, row in enumerate(populated.rows) if row.owner_id == populated.viewers["early"]
    )
    assert newest_early > 2_000
    assert len({row.create_time for row in populated.rows}) <= MOMENTS


def test_a_listed_job_has_its_names_and_no_payload(populated: Populated) -> None:
    with populated.world.database.snapshot(seconds=10) as tx:
        page = tx.job_list.newest(None, JobFilter(), cursor=None, skip=0, limit=50)
    for job, row in zip(page, populated.rows, strict=False):
        assert (job.job_id, job.run_type, job.status) == (row.job_id, row.run_type, row.status)
        assert (job.owner_id, job.creator_id, job.create_time) == (
            row.owner_id,
            row.creator_id,
            row.create_time,
        )
        assert job.dataset_name == f"data set {row.dataset_id}"
        assert job.owner_soeid is not None
        assert (job.creator_soeid is None) == (row.owner_id == row.creator_id)
        assert (job.run_parameters, job.output_summary) == (None, None)


def test_a_total_stops_at_the_cap(stored_world: World) -> None:
    owner, reader = stored_world.user(), stored_world.user()
    datasets = [stored_world.dataset() for _ in range(3)]
    allow(stored_world, reader, datasets)

    def add(jobs: int, dataset_id: int) -> None:
        stored_world.sql.execute(
            """INSERT INTO jobs (job_id, run_type, dataset_id, owner_id, creator_id, priority,
                                 payload_bytes, run_parameters)
               SELECT gen_random_uuid(), 'IMPORT', %s, %s, %s, 0, 2, '{}' FROM generate_series(1, %s)""",
            (dataset_id, owner.user_id, owner.user_id, jobs),
        )

    def totals() -> list[int]:
        with stored_world.database.snapshot(seconds=10) as tx:
            return [call() for call in _ways_to_count(tx.job_list, owner, reader)]

    add(4_000, datasets[0])
    add(TOTAL_CAP - 4_000 - 1, datasets[1])
    assert set(totals()) == {TOTAL_CAP - 1}
    add(1, datasets[2])
    assert set(totals()) == {TOTAL_CAP}
    add(1, datasets[2])
    assert set(totals()) == {TOTAL_CAP}
    add(4_000, datasets[2])
    assert set(totals()) == {TOTAL_CAP}


def _ways_to_count(job_list: JobList, owner: User, reader: User) -> list[Any]:
    filters = [
        JobFilter(),
        JobFilter(owner_id=owner.user_id),
        JobFilter(statuses=frozenset({JobStatus.PENDING})),
    ]
    viewers = [None, owner.user_id, reader.user_id]
    return [partial(job_list.total, viewer, wanted) for wanted in filters for viewer in viewers]
