"""What pages, totals and page tokens hold, for whom; how large a page may be."""

import itertools
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from jobs.v1 import jobs_pb2
from jobs_service.model.caller import Level, Role
from jobs_service.model.job import JobStatus
from tests.conftest import service_settings
from tests.support.client import Client, refused
from tests.support.postgres import PostgresServer
from tests.support.service import ServiceProcess
from tests.support.world import World

MEBIBYTE = 1024 * 1024
NOBODY = "zz99999"
NO_DATASET = 99_999
RUN_PARAMETERS: dict[Any, dict[str, Any]] = {
    jobs_pb2.RUN_TYPE_IMPORT: {"file_path": "landing/a.csv"},
    jobs_pb2.RUN_TYPE_SAMPLING: {"sample_size": 10},
    jobs_pb2.RUN_TYPE_EXPLORATION: {"output_format": "json"},
}


class Mixture:
    """About 40 jobs of several makers on six data sets, alone in a database; nothing here changes them."""

    def __init__(self, world: World) -> None:
        self.world = world
        datasets = [world.dataset() for _ in range(6)]
        writes = dict.fromkeys(datasets, Level.WRITE)
        self.owner, neighbour = world.user(grants=writes), world.user(grants=writes)
        self.dataset = datasets[0]
        self.viewers = {
            "admin": world.user(Role.ADMIN),
            "owner": self.owner,
            "creator": world.user(Role.SERVICE),
            "reader of one": world.user(grants={datasets[5]: Level.READ}),
            "reader of many": world.user(Role.SERVICE, dict.fromkeys(datasets[1:5], Level.ADMIN)),
            "stranger": world.user(),
        }
        makers = [
            world.client(self.owner),
            world.client(self.viewers["creator"], on_behalf_of=self.owner),
            world.client(self.viewers["creator"], on_behalf_of=neighbour),
            world.client(neighbour),
            world.client(self.viewers["admin"]),
        ]
        kinds = itertools.cycle(RUN_PARAMETERS)
        statuses = itertools.cycle(JobStatus)
        for number, dataset_id in zip(range(42), itertools.cycle(datasets), strict=False):
            kind = next(kinds)
            job = (
                makers[number % len(makers)]
                .create(
                    dataset_id=dataset_id,
                    run_type=kind,
                    run_parameters=RUN_PARAMETERS[kind],
                    external_id=["", "nightly", "hourly", "nightly"][number % 4],
                )
                .job
            )
            if (status := next(statuses)) is not JobStatus.PENDING:
                world.set_status(job.job_id, status)
        for dataset_id in datasets:
            world.access.revoke(self.owner.soeid, dataset_id)
        # Many jobs of one moment: then the order is by job_id alone.
        world.sql.execute(
            "UPDATE jobs SET create_time = now() + get_byte(uuid_send(job_id), 15) % 5 * interval '1 s'"
        )
        middle = world.sql.execute(
            "SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY create_time) FROM jobs"
        )
        self.middle = middle.fetchall()[0][0]

    def filters(self) -> dict[str, tuple[dict[str, Any], str]]:
        """Each filter, and pairs of them, with the condition that it stands for."""
        owner, middle = self.owner, Timestamp()
        middle.FromDatetime(self.middle)
        single: dict[str, tuple[dict[str, Any], str]] = {
            "owner": ({"user_id": owner.user_id}, f"owner_id = {owner.user_id}"),
            "data set": ({"dataset_id": self.dataset}, f"dataset_id = {self.dataset}"),
            "statuses": ({"statuses": [1, 2, 2]}, "status IN ('PENDING', 'RUNNING')"),
            "ended": ({"statuses": [3, 4]}, "status IN ('COMPLETED', 'FAILED')"),
            "run types": ({"run_types": [2, 3]}, "run_type IN ('SAMPLING', 'EXPLORATION')"),
            "external id": ({"external_id": "nightly"}, "external_id = 'nightly'"),
            "from": ({"create_time_from": middle}, f"create_time >= '{self.middle}'"),
            "to": ({"create_time_to": middle}, f"create_time < '{self.middle}'"),
        }
        pairs = {
            f"{one} and {other}": (
                single[one][0] | single[other][0],
                f"{single[one][1]} AND {single[other][1]}",
            )
            for one, other in itertools.combinations(single, 2)
            if not {one, other} <= {"statuses", "ended"}
        }
        by_soeid = {"SOEID": ({"user_soeid": owner.soeid.upper()}, f"owner_id = {owner.user_id}")}
        return {"no filter": ({}, "true")} | single | by_soeid | pairs

    def visible(self, viewer: str, condition: str) -> list[str]:
        """The model: the rule of visibility as one plain OR."""
        user_id = self.viewers[viewer].user_id
        rows = self.world.sql.execute(
            f"""SELECT job_id::text FROM jobs
                 WHERE {condition} AND ({viewer == "admin"} OR owner_id = {user_id} OR creator_id = {user_id}
                    OR dataset_id IN (SELECT dataset_id FROM dataset_permissions WHERE user_id = {user_id}))
                 ORDER BY create_time DESC, job_id DESC""".encode()
        )
        return [row[0] for row in rows]


@pytest.fixture(scope="module")
def mixture(postgres_18: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixture]:
    folder = tmp_path_factory.mktemp("visibility")
    url = postgres_18.new_database()
    service = ServiceProcess(folder, service_settings(url, folder))
    try:
        with closing(World(url, service.started().target)) as world:
            yield Mixture(world)
    finally:
        assert service.stop() == 0


VIEWERS = ["admin", "owner", "creator", "reader of one", "reader of many", "stranger"]


@pytest.mark.parametrize("viewer", VIEWERS)
def test_a_total_is_what_one_can_page_through(mixture: Mixture, viewer: str) -> None:
    client = mixture.world.client(mixture.viewers[viewer])
    for name, (fields, condition) in mixture.filters().items():
        expected = mixture.visible(viewer, condition)
        for page_size in (7, 1000) if " and " in name else (1, 7, 1000):
            pages = list(client.pages(filter=fields, page_size=page_size, include_total_size=True))
            shown = [job.job_id for page in pages for job in page.jobs]
            assert shown == expected, (name, page_size)
            assert {page.total_size for page in pages} == {len(expected)}, (name, page_size)
            assert not any(page.total_size_capped for page in pages)
    assert bool(mixture.visible(viewer, "true")) == (viewer != "stranger")


@pytest.mark.parametrize("viewer", VIEWERS)
@pytest.mark.parametrize(("page_size", "skip"), [(1, 1), (2, 3), (7, 2), (7, 100), (1000, 5)])
def test_skip_counts_from_the_place_of_the_token(
    mixture: Mixture, viewer: str, page_size: int, skip: int
) -> None:
    client = mixture.world.client(mixture.viewers[viewer])
    for name in ("no filter", "owner", "from", "run types and from", "statuses"):
        fields, condition = mixture.filters()[name]
        rest = mixture.visible(viewer, condition)
        total = len(rest)
        for page in client.pages(filter=fields, page_size=page_size, skip=skip, include_total_size=True):
            assert [job.job_id for job in page.jobs] == rest[skip : skip + page_size], name
            assert page.total_size == total
            rest = rest[skip + page_size :]
        assert rest == [], name


def test_the_filters_of_a_list_are_not_all_alike(mixture: Mixture) -> None:
    """The tests above would prove little on lists that are empty or complete."""
    sizes = [len(mixture.visible("admin", condition)) for _, condition in mixture.filters().values()]
    assert sum(1 for size in sizes if 0 < size < 42) > 25


@pytest.mark.parametrize("viewer", VIEWERS)
def test_an_owner_whom_nobody_knows_never_widens_a_list(mixture: Mixture, viewer: str) -> None:
    world, client = mixture.world, mixture.world.client(mixture.viewers[viewer])
    gone = world.user()
    world.client(gone).list()
    world.sql.execute("DELETE FROM users WHERE user_id = %s", (gone.user_id,))
    others = {"dataset_id": mixture.dataset, "external_id": "nightly"}
    for rest in ({}, others):
        for owner in ({"user_soeid": NOBODY}, {"user_soeid": gone.soeid}):
            with refused("NOT_FOUND", "USER_NOT_FOUND") as refusal:
                client.list(filter=rest | owner, include_total_size=True)
            assert refusal.it.metadata == owner
        for user_id in (gone.user_id, 2**63 - 1):
            with refused("NOT_FOUND", "USER_NOT_FOUND") as refusal:
                client.list(filter=rest | {"user_id": user_id}, include_total_size=True)
            assert refusal.it.metadata == {"user_id": str(user_id)}
    page = client.list(filter={"dataset_id": NO_DATASET}, include_total_size=True)
    assert (len(page.jobs), page.next_page_token, page.HasField("total_size"), page.total_size) == (
        0,
        "",
        True,
        0,
    )


class Crowd:
    """A data set with many jobs, its owner (who has no level on it any more) and a reader."""

    def __init__(self, world: World, jobs: int) -> None:
        self.world = world
        self.dataset = world.dataset()
        self.owner, self.reader = world.user(), world.user(grants={self.dataset: Level.READ})
        self.add(jobs)

    def add(self, jobs: int) -> None:
        # Half of them at one moment.
        self.world.sql.execute(
            """INSERT INTO jobs (job_id, run_type, dataset_id, owner_id, creator_id, priority,
                                 payload_bytes, run_parameters, create_time)
               SELECT gen_random_uuid(), 'IMPORT', %s, %s, %s, 0, 2, '{}',
                      now() - greatest(n - %s / 2, 0) * interval '1 ms'
                 FROM generate_series(1, %s) AS n""",
            (self.dataset, self.owner.user_id, self.owner.user_id, jobs, jobs),
        )

    def ids(self) -> list[str]:
        rows = self.world.sql.execute(
            "SELECT job_id::text FROM jobs WHERE dataset_id = %s ORDER BY create_time DESC, job_id DESC",
            (self.dataset,),
        )
        return [row[0] for row in rows]

    def clients(self) -> Iterator[tuple[Client, dict[str, Any]]]:
        """Whoever sees all of it, and nothing else of its kind."""
        reader, owner = self.world.client(self.reader), self.world.client(self.owner)
        for selects_all in ({}, {"dataset_id": self.dataset}, {"statuses": [1]}, {"run_types": [1]}):
            yield reader, selects_all
            yield owner, selects_all
        yield owner, {"user_soeid": self.owner.soeid}
        yield self.world.client(self.world.user(Role.ADMIN)), {"dataset_id": self.dataset}


def test_a_total_is_exact_below_ten_thousand_and_stops_there(world: World) -> None:
    crowd = Crowd(world, 9_999)

    def totals() -> set[tuple[int, bool]]:
        pages = [
            client.list(filter=fields, include_total_size=True, page_size=1)
            for client, fields in crowd.clients()
        ]
        return {(page.total_size, page.total_size_capped) for page in pages}

    assert totals() == {(9_999, False)}
    crowd.add(1)
    assert {size for size, _ in totals()} == {10_000}
    crowd.add(50)
    assert totals() == {(10_000, True)}
    page = world.client(crowd.reader).list(page_size=1)
    assert (page.HasField("total_size"), page.total_size_capped) == (False, False)


def test_ten_thousand_jobs_are_paged_through_in_order(world: World) -> None:
    crowd = Crowd(world, 10_050)
    expected = crowd.ids()
    admin, fields = world.client(world.user(Role.ADMIN)), {"dataset_id": crowd.dataset}
    for client in (world.client(crowd.reader), world.client(crowd.owner), admin):
        pages = list(client.pages(filter=fields if client is admin else {}, page_size=5000))
        assert [len(page.jobs) for page in pages] == [1000] * 10 + [50]
        assert [job.job_id for page in pages for job in page.jobs] == expected
        last = client.list(filter=fields, skip=10_000, page_size=1000).jobs
        assert [job.job_id for job in last] == expected[10_000:]


def test_a_page_has_a_hundred_jobs_by_default_and_a_thousand_at_most(world: World) -> None:
    client = world.client(Crowd(world, 1_200).reader)
    sizes = {
        asked: len(client.list(page_size=asked).jobs)
        for asked in (0, 1, 100, 999, 1000, 1001, 5000, 2**31 - 1)
    }
    assert sizes == {0: 100, 1: 1, 100: 100, 999: 999, 1000: 1000, 1001: 1000, 5000: 1000, 2**31 - 1: 1000}
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        client.list(page_size=-1)
    assert refusal.it.metadata["field"] == "page_size"


def test_a_list_stays_stable_while_jobs_are_being_created(world: World) -> None:
    dataset = world.dataset()
    client = world.client(world.user(grants={dataset: Level.WRITE}))
    before = [client.create(dataset_id=dataset).job.job_id for _ in range(20)]
    shown = []
    for page in client.pages(page_size=3):
        shown += [job.job_id for job in page.jobs]
        client.create(dataset_id=dataset)
    assert shown == before[::-1]


def test_a_page_token_gives_another_caller_no_more_rights(world: World) -> None:
    crowd = Crowd(world, 30)
    foreign = Crowd(world, 30)
    since = Timestamp(seconds=1)
    fields = {"create_time_from": since}
    admin, reader = world.client(world.user(Role.ADMIN)), world.client(crowd.reader)
    stranger = world.client(world.user())
    places = [admin.list(filter=fields, page_size=size).next_page_token for size in (1, 20, 50)]
    places.append(world.client(foreign.reader).list(filter=fields, page_size=10).next_page_token)
    for token in places:
        shown = {job.job_id for job in reader.list(filter=fields, page_token=token, page_size=1000).jobs}
        assert shown <= set(crowd.ids())
        page = stranger.list(filter=fields, page_token=token, include_total_size=True)
        assert (list(page.jobs), page.next_page_token, page.total_size) == ([], "", 0)


def test_a_page_token_is_bound_to_filter_and_view_and_to_nothing_else(world: World) -> None:
    crowd = Crowd(world, 12)
    reader, expected, owner = world.client(crowd.reader), crowd.ids(), crowd.owner
    early, late = Timestamp(seconds=1), Timestamp(seconds=4_000_000_000)
    fields = {"dataset_id": crowd.dataset, "create_time_to": late}
    token = reader.list(filter=fields, page_size=5).next_page_token
    changes: list[dict[str, Any]] = [
        {"dataset_id": NO_DATASET},
        {"user_id": owner.user_id},
        {"user_soeid": owner.soeid},
        {"statuses": [1]},
        {"run_types": [1]},
        {"external_id": "a"},
        {"create_time_from": early},
        {"create_time_to": Timestamp(seconds=late.seconds, nanos=1000)},
    ]
    requests: list[dict[str, Any]] = [{"filter": fields | change} for change in changes]
    requests += [{"filter": {"dataset_id": crowd.dataset}}, {}]
    requests += [{"filter": fields, "view": jobs_pb2.JOB_VIEW_FULL}]
    for request in requests:
        with refused("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN") as refusal:
            reader.list(**request, page_token=token)
        assert (refusal.it.metadata, list(refusal.it.violations)) == ({"field": "page_token"}, ["page_token"])
    same: list[tuple[dict[str, Any], slice]] = [
        ({"page_size": 2}, slice(5, 7)),
        ({"page_size": 5000}, slice(5, 12)),
        ({"skip": 3}, slice(8, 12)),
        ({"include_total_size": True, "view": jobs_pb2.JOB_VIEW_BASIC}, slice(5, 12)),
    ]
    for arguments, place in same:
        page = reader.list(filter=fields, page_token=token, **arguments)
        assert [job.job_id for job in page.jobs] == expected[place], arguments


def test_a_damaged_page_token_is_refused(world: World) -> None:
    client = world.client(Crowd(world, 3).reader)
    token = client.list(page_size=1).next_page_token
    damaged = [
        f"{token[:place]}{'A' if token[place] != 'A' else 'B'}{token[place + 1 :]}"
        for place in range(len(token))
    ]
    damaged += [token[:-1], token[1:], f"{token}A", f" {token}", token + token]
    damaged += ["x", "next", "ü", "=" * 44, "A" * 44, "_" * 44, "A" * 100_000]
    for text in damaged:
        with refused("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN"):
            client.list(page_token=text)


# Compact JSON of the same size: a text is as long in protobuf, a list of digits five times as long.
LARGE: dict[str, tuple[int, dict[str, Any]]] = {
    "text": (40, {"blob": "x" * 250 * 1024}),
    "digits": (4, {"blob": [1] * 125 * 1024}),
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_full_page_of_large_jobs_stays_under_three_mebibytes(world: World, kind: str) -> None:
    number, parameters = LARGE[kind]
    dataset = world.dataset()
    client = world.client(world.user(grants={dataset: Level.WRITE}))
    request = jobs_pb2.CreateJobRequest(dataset_id=dataset, run_type=jobs_pb2.RUN_TYPE_IMPORT)
    request.run_parameters.update({"file_path": "a.csv"} | parameters)
    made = [client.call("CreateJob", request).job.job_id for _ in range(number)]
    pages = list(client.pages(view=jobs_pb2.JOB_VIEW_FULL, page_size=number, include_total_size=True))
    assert all(page.jobs and page.ByteSize() <= 3 * MEBIBYTE for page in pages)
    assert [job.job_id for page in pages for job in page.jobs] == made[::-1]
    assert all(job.run_parameters == request.run_parameters for page in pages for job in page.jobs)
    assert {page.total_size for page in pages} == {number}
    assert len(pages) < number


def test_a_basic_page_of_long_texts_stays_under_three_mebibytes(world: World) -> None:
    crowd = Crowd(world, 1000)
    world.sql.execute(
        """UPDATE jobs SET description = repeat('d', 1000), error_message = repeat('e', 1000),
                           external_id = repeat('x', 128), cancel_reason = repeat('c', 500),
                           progress = jsonb_build_object('message', repeat('p', 4000))
            WHERE dataset_id = %s""",
        (crowd.dataset,),
    )
    pages = list(world.client(crowd.reader).pages(page_size=1000))
    assert all(page.ByteSize() <= 3 * MEBIBYTE for page in pages)
    assert [job.job_id for page in pages for job in page.jobs] == crowd.ids()
    assert len(pages) == 3
