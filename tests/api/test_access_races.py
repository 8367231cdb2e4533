"""Changes of users, data sets and permissions that meet: on two replicas, with each other and with calls."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any

import grpc
import pytest

from jobs.v1 import access_pb2, jobs_pb2
from jobs_service.model.caller import Level, Role
from tests.conftest import service_settings
from tests.support.client import Client, rich_error
from tests.support.postgres import PostgresServer, connect
from tests.support.service import ServiceProcess, wait_until
from tests.support.world import User, World

ROUNDS = 25


@pytest.fixture(scope="module")
def replicas(postgres_18: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[World]]:
    """Two services on one database, patient with locks so that a slow machine changes nothing."""
    url = postgres_18.new_database()
    services, worlds = [], []
    try:
        for _ in range(2):
            folder = tmp_path_factory.mktemp("replica")
            settings = service_settings(url, folder) | {"JOBS_LOCK_SECONDS": "8"}
            services.append(ServiceProcess(folder, settings))
        worlds = [World(url, service.started().target) for service in services]
        yield worlds
    finally:
        for world in worlds:
            world.close()
        assert [service.stop() for service in services] == [0, 0]


@pytest.fixture
def admins(replicas: list[World]) -> list[Client]:
    """One admin, calling each replica."""
    admin = replicas[0].user(Role.ADMIN)
    return [world.client(admin) for world in replicas]


def at_once(calls: Sequence[tuple[Client, str, dict[str, Any]]]) -> list[str]:
    """Make all calls of AccessService, or CreateJob, at the same time; reasons of refusals, OK, changed."""
    barrier = Barrier(len(calls))

    def call(one: tuple[Client, str, dict[str, Any]]) -> str:
        client, rpc, fields = one
        barrier.wait()
        try:
            answer = client.create(**fields) if rpc == "CreateJob" else client.access(rpc, **fields)
        except grpc.RpcError as error:
            return rich_error(error).reason
        return "changed" if getattr(answer, "changed", False) else "OK"

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(call, calls))


def count(world: World, statement: str, *parameters: Any) -> int:
    row = world.sql.execute(statement.encode(), parameters).fetchone()
    assert row is not None
    return int(row[0])


def test_of_two_admins_who_delete_each_other_one_is_left(replicas: list[World]) -> None:
    for _ in range(ROUNDS):
        pair = [world.user(Role.ADMIN) for world in replicas]
        clients = [world.client(user) for world, user in zip(replicas, pair, strict=True)]
        answers = at_once(
            [
                (client, "DeleteUser", {"user_soeid": other.soeid})
                for client, other in zip(clients, pair[::-1], strict=True)
            ]
        )
        assert sorted(answers) == ["CALLER_UNKNOWN", "changed"]


def test_of_many_who_put_the_same_one_has_changed_it_and_one_is_recorded(
    replicas: list[World], admins: list[Client]
) -> None:
    world = replicas[0]
    for _ in range(ROUNDS):
        user, dataset = world.user(), world.dataset()
        soeid = user.soeid
        world.access.delete_user(soeid)
        for rpc, fields, kind in (
            ("PutUser", {"user_soeid": soeid, "role": access_pb2.ROLE_USER}, "USER_PUT"),
            ("GrantRunType", {"user_soeid": soeid, "run_type": 1}, "RUN_TYPE_GRANTED"),
            (
                "GrantPermission",
                {"user_soeid": soeid, "dataset_id": dataset, "level": 1},
                "PERMISSION_GRANTED",
            ),
            ("RevokePermission", {"user_soeid": soeid, "dataset_id": dataset}, "PERMISSION_REVOKED"),
            ("DeleteUser", {"user_soeid": soeid}, "USER_DELETED"),
        ):
            answers = at_once([(client, rpc, fields) for client in admins * 3])
            assert Counter(answers) == {"changed": 1, "OK": 5}, rpc
            events = "SELECT count(*) FROM access_events WHERE type = %s AND user_soeid = %s"
            # The world itself has put and deleted the user once.
            before = 1 if kind in {"USER_PUT", "USER_DELETED"} else 0
            assert count(world, events, kind, soeid) == before + 1, rpc


def test_a_grant_while_its_user_or_data_set_is_deleted_is_refused_or_done(
    replicas: list[World], admins: list[Client]
) -> None:
    world = replicas[0]
    for n in range(ROUNDS):
        user, dataset = world.user(), world.dataset()
        grant = {"user_soeid": user.soeid, "dataset_id": dataset, "level": 2}
        run_type = {"user_soeid": user.soeid, "run_type": 1}
        deletion: tuple[str, dict[str, Any]] = (
            ("DeleteUser", {"user_soeid": user.soeid})
            if n % 2
            else ("DeleteDataset", {"dataset_id": dataset})
        )
        answers = at_once(
            [
                (admins[0], *deletion),
                (admins[1], "GrantPermission", grant),
                (admins[0], "GrantRunType", run_type),
                (admins[1], "SetDatasetLimit", {"dataset_id": dataset, "max_running": 2}),
            ]
        )
        assert answers[0] == "changed"
        assert set(answers[1:]) <= {"changed", "USER_NOT_FOUND", "DATASET_NOT_FOUND"}
    orphaned = """SELECT count(*) FROM dataset_permissions p
                   WHERE NOT EXISTS (SELECT FROM users u WHERE u.user_id = p.user_id)
                      OR NOT EXISTS (SELECT FROM datasets d WHERE d.dataset_id = p.dataset_id)"""
    assert count(world, orphaned) == 0


def test_a_grant_while_another_program_deletes_the_user_is_no_fault(
    replicas: list[World], admins: list[Client]
) -> None:
    world = replicas[0]
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%FROM users%%'"
    )
    for _ in range(ROUNDS):
        user, dataset = world.user(), world.dataset()
        grant = {"user_soeid": user.soeid, "dataset_id": dataset, "level": 2}
        with connect(world.database_url) as sql, ThreadPoolExecutor(1) as threads:
            sql.execute("BEGIN")
            sql.execute("DELETE FROM users WHERE user_id = %s", (user.user_id,))
            granting = threads.submit(at_once, [(admins[1], "GrantPermission", grant)])
            wait_until(partial(count, world, waiting), 20, "the grant to wait for the deletion")
            sql.execute("COMMIT")
            assert granting.result() == ["USER_NOT_FOUND"]


def test_what_is_created_while_its_data_set_is_deleted_is_refused_or_cancelled(
    replicas: list[World], admins: list[Client]
) -> None:
    world = replicas[0]
    datasets = []
    for _ in range(ROUNDS):
        dataset = world.dataset()
        datasets.append(dataset)
        user = world.user(grants={dataset: Level.WRITE})
        creators = [each.client(user) for each in replicas * 3]
        answers = at_once(
            [
                (admins[0], "DeleteDataset", {"dataset_id": dataset}),
                *((client, "CreateJob", {"dataset_id": dataset}) for client in creators),
            ]
        )
        assert answers[0] == "changed"
        assert set(answers[1:]) <= {"OK", "DATASET_PERMISSION_DENIED"}
    left = "SELECT count(*) FROM jobs WHERE dataset_id = ANY(%s) AND status <> 'CANCELLED'"
    wait_until(lambda: count(world, left, datasets) == 0, 60, "the duty to cancel the rest")


def test_a_change_counts_on_every_replica_from_the_next_call_on(
    replicas: list[World], admins: list[Client]
) -> None:
    world = replicas[0]
    dataset, user = world.dataset(), world.user()
    theirs = [each.client(user) for each in replicas]
    for n in range(ROUNDS):
        level = {"user_soeid": user.soeid, "dataset_id": dataset}
        create = {"dataset_id": dataset}
        admins[n % 2].access("GrantPermission", **level, level=2)
        assert at_once([(client, "CreateJob", create) for client in theirs]) == ["OK", "OK"]
        admins[n % 2].access("RevokePermission", **level)
        assert (
            at_once([(client, "CreateJob", create) for client in theirs]) == ["DATASET_PERMISSION_DENIED"] * 2
        )


@pytest.fixture
def dataset(replicas: list[World]) -> int:
    return replicas[0].dataset()


@pytest.fixture
def user(replicas: list[World], dataset: int) -> User:
    return replicas[0].user(grants={dataset: Level.WRITE})


def renew(admin: Client, user: User, dataset: int) -> int:
    """Delete a user, add it again, and grant it what it had; the new id."""
    admin.access("DeleteUser", user_soeid=user.soeid)
    put = admin.access("PutUser", user_soeid=user.soeid, role=access_pb2.ROLE_USER)
    admin.access("GrantPermission", user_soeid=user.soeid, dataset_id=dataset, level=2)
    return int(put.user.user_id)


def test_a_user_added_again_may_call_at_once_on_every_replica(
    replicas: list[World], admins: list[Client], user: User, dataset: int
) -> None:
    clients = [world.client(user) for world in replicas]
    for client in clients:
        client.create(dataset_id=dataset)
    for admin, _ in itertools.product(admins, range(3)):
        user_id = renew(admin, user, dataset)
        assert [client.create(dataset_id=dataset).job.user_id for client in clients] == [user_id] * 2


def test_a_user_added_again_may_make_any_call_first(
    replicas: list[World], admins: list[Client], user: User, dataset: int
) -> None:
    client = replicas[1].client(user)
    job_id = client.create(dataset_id=dataset).job.job_id
    calls: list[Callable[[], object]] = [
        client.list,
        lambda: client.get(job_id),
        lambda: client.status(job_id),
        lambda: client.cancel(job_id),
    ]
    for call in calls:
        renew(admins[0], user, dataset)
        call()


def test_a_user_added_again_may_be_called_for_at_once_on_every_replica(
    replicas: list[World], admins: list[Client], user: User, dataset: int
) -> None:
    program = replicas[0].user(Role.SERVICE)
    clients = [world.client(program, on_behalf_of=user) for world in replicas]
    for client in clients:
        client.create(dataset_id=dataset)
    user_id = renew(admins[0], user, dataset)
    jobs = [client.create(dataset_id=dataset).job for client in clients]
    assert [(job.user_id, job.creator_soeid) for job in jobs] == [(user_id, program.soeid)] * 2


def test_a_user_added_again_is_found_by_its_soeid_in_a_filter(
    replicas: list[World], admins: list[Client], user: User, dataset: int
) -> None:
    for admin in admins:
        admin.list(filter={"user_soeid": user.soeid})
    renew(admins[0], user, dataset)
    made = replicas[0].client(user).create(dataset_id=dataset).job
    for admin in admins:
        assert [job.job_id for job in admin.list(filter={"user_soeid": user.soeid}).jobs] == [made.job_id]


def test_a_user_added_again_may_make_many_calls_at_once(
    replicas: list[World], admins: list[Client], user: User, dataset: int
) -> None:
    clients = [world.client(user) for world in replicas for _ in range(16)]
    for client in clients:
        client.list()
    renew(admins[0], user, dataset)
    calls = [(client, "CreateJob", {"dataset_id": dataset}) for client in clients]
    assert set(at_once(calls)) == {"OK"}


def test_a_user_added_again_is_not_the_owner_of_the_jobs_from_before(
    replicas: list[World], admins: list[Client], user: User, dataset: int
) -> None:
    client = replicas[0].client(user)
    client.create(dataset_id=dataset)
    user_id = renew(admins[1], user, dataset)
    shown = client.list(filter={"dataset_id": dataset}).jobs
    assert [(job.user_soeid, job.HasField("user_id")) for job in shown] == [("", False)]
    assert client.list(filter={"user_id": user_id}).jobs == []


def test_a_deleted_user_is_refused_like_anybody_however_often_it_called(
    replicas: list[World], admins: list[Client], user: User, dataset: int
) -> None:
    program = replicas[0].user(Role.SERVICE)
    clients = [world.client(user) for world in replicas]
    for_it = [world.client(program, on_behalf_of=user) for world in replicas]
    for client in clients + for_it:
        client.create(dataset_id=dataset)
    admins[0].access("DeleteUser", user_soeid=user.soeid)
    answers = at_once([(client, "CreateJob", {"dataset_id": dataset}) for client in clients + for_it])
    assert answers == ["CALLER_UNKNOWN"] * 2 + ["USER_NOT_FOUND"] * 2
    assert count(replicas[0], "SELECT count(*) FROM jobs WHERE dataset_id = %s", dataset) == 4


def test_a_portion_is_cancelled_when_the_call_returns_and_what_is_left_soon_after(
    replicas: list[World], admins: list[Client]
) -> None:
    world = replicas[0]
    dataset = world.dataset()
    user = world.user(grants={dataset: Level.WRITE})
    job = world.client(user).create(dataset_id=dataset).job
    # More than one portion, as they would be after 700 calls.
    copies = """INSERT INTO jobs (job_id, run_type, dataset_id, owner_id, creator_id, priority, payload_bytes,
                                  run_parameters)
                SELECT gen_random_uuid(), 'IMPORT', %s, %s, %s, 0, 2, '{}' FROM generate_series(1, 700)"""
    world.sql.execute(copies, (dataset, user.user_id, user.user_id))
    admins[0].access("DeleteDataset", dataset_id=dataset)
    done = "SELECT count(*) FROM jobs WHERE dataset_id = %s AND status = 'CANCELLED'"
    assert count(world, done, dataset) >= 500
    wait_until(lambda: count(world, done, dataset) == 701, 60, "the duty to cancel the rest")
    reason = f"data set {dataset} was deleted"
    seen = admins[1].get(job.job_id)
    assert (seen.status, seen.cancel_reason) == (jobs_pb2.JOB_STATUS_CANCELLED, reason)
    assert seen.cancelled_by_soeid.startswith("ad")
    assert world.client(user).get(job.job_id).dataset_name == ""
