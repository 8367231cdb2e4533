"""AccessService: what each RPC does, that it can be repeated, and what the history says of it."""

from typing import Any

import pytest

from jobs.v1 import access_pb2, jobs_pb2
from jobs_service.model.caller import Level, Role
from tests.support.client import Client, refused
from tests.support.world import User, World

SAMPLING = [jobs_pb2.RUN_TYPE_SAMPLING]
READ, WRITE = access_pb2.PERMISSION_LEVEL_READ, access_pb2.PERMISSION_LEVEL_WRITE


@pytest.fixture
def admin(world: World) -> User:
    return world.user(Role.ADMIN)


@pytest.fixture
def client(world: World, admin: User) -> Client:
    """Calls as an admin."""
    return world.client(admin)


def recorded(world: World, admin: User) -> list[tuple[Any, ...]]:
    """What an admin has changed, oldest first."""
    return world.sql.execute(
        """SELECT type, user_id, user_soeid, dataset_id, value FROM access_events
            WHERE (actor_id, actor_soeid) = (%s, %s) ORDER BY event_id""",
        (admin.user_id, admin.soeid),
    ).fetchall()


def new_soeid(world: World) -> str:
    """The SOEID of nobody."""
    user = world.user()
    world.access.delete_user(user.soeid)
    return user.soeid


def test_a_user_is_put_once_and_may_call_at_once(world: World, admin: User, client: Client) -> None:
    soeid = new_soeid(world)
    first = client.access("PutUser", user_soeid=soeid.upper(), role=access_pb2.ROLE_USER)
    again = client.access("PutUser", user_soeid=soeid, role=access_pb2.ROLE_USER)
    assert (first.changed, again.changed, first.user) == (True, False, again.user)
    assert (first.user.user_soeid, first.user.role) == (soeid, access_pb2.ROLE_USER)
    assert world.client(User(soeid, 0)).list().jobs == []
    assert recorded(world, admin) == [("USER_PUT", first.user.user_id, soeid, None, "user")]


def test_a_role_counts_from_the_next_call_on(world: World, admin: User, client: Client) -> None:
    user = world.user()
    theirs = world.client(user)
    with refused("PERMISSION_DENIED", "ROLE_REQUIRED"):
        theirs.access("ListPermissions")
    raised = client.access("PutUser", user_soeid=user.soeid, role=access_pb2.ROLE_ADMIN)
    assert (raised.changed, raised.user.user_id) == (True, user.user_id)
    theirs.access("ListPermissions", page_size=1)
    client.access("PutUser", user_soeid=user.soeid, role=access_pb2.ROLE_USER)
    with refused("PERMISSION_DENIED", "ROLE_REQUIRED"):
        theirs.access("ListPermissions")
    assert [event[4] for event in recorded(world, admin)] == ["admin", "user"]


def test_the_jobs_of_a_deleted_user_go_on_without_an_owner(world: World, admin: User, client: Client) -> None:
    dataset = world.dataset()
    user = world.user(grants={dataset: Level.WRITE})
    job = world.client(user).create(dataset_id=dataset).job
    assert client.access("DeleteUser", user_soeid=user.soeid.upper()).changed
    assert not client.access("DeleteUser", user_soeid=user.soeid).changed
    with refused("UNAUTHENTICATED", "CALLER_UNKNOWN"):
        world.client(user).list()
    left = client.get(job.job_id)
    assert (left.status, left.version) == (jobs_pb2.JOB_STATUS_PENDING, 1)
    assert (left.user_soeid, left.HasField("user_id")) == ("", False)
    assert recorded(world, admin) == [("USER_DELETED", user.user_id, user.soeid, None, None)]


def test_a_user_who_is_added_again_is_another_one(world: World, client: Client) -> None:
    dataset = world.dataset()
    user = world.user(grants={dataset: Level.WRITE})
    job = world.client(user).create(dataset_id=dataset).job
    client.access("DeleteUser", user_soeid=user.soeid)
    again = client.access("PutUser", user_soeid=user.soeid, role=access_pb2.ROLE_USER).user
    assert again.user_id > user.user_id
    with refused("NOT_FOUND", "JOB_NOT_FOUND"):
        world.client(user).get(job.job_id)
    assert client.access("ListPermissions", user_soeid=user.soeid).permissions == []


def test_a_data_set_is_put_renamed_and_deleted_once(world: World, admin: User, client: Client) -> None:
    dataset = world.dataset()
    client.access("DeleteDataset", dataset_id=dataset)
    names = ["sales", "sales", "Verk\u00e4ufe"]
    put = [client.access("PutDataset", dataset_id=dataset, name=name) for name in names]
    assert [answer.changed for answer in put] == [True, False, True]
    assert put[2].dataset == access_pb2.Dataset(dataset_id=dataset, name="Verk\u00e4ufe")
    deleted = [client.access("DeleteDataset", dataset_id=dataset).changed for _ in range(2)]
    assert deleted == [True, False]
    assert [(event[0], event[4]) for event in recorded(world, admin)] == [
        ("DATASET_DELETED", None),
        ("DATASET_PUT", "sales"),
        ("DATASET_PUT", "Verk\u00e4ufe"),
        ("DATASET_DELETED", None),
    ]


def test_a_permission_counts_and_ceases_to_from_the_next_call_on(
    world: World, admin: User, client: Client
) -> None:
    dataset, user = world.dataset(), world.user()
    asked: dict[str, Any] = {"user_soeid": user.soeid, "dataset_id": dataset}
    granted = [client.access("GrantPermission", **asked, level=level) for level in (WRITE, WRITE)]
    assert [answer.changed for answer in granted] == [True, False]
    assert granted[1].permission == access_pb2.Permission(user_id=user.user_id, **asked, level=WRITE)
    world.client(user).create(dataset_id=dataset)
    assert client.access("GrantPermission", **asked, level=READ).changed
    with refused("PERMISSION_DENIED", "DATASET_PERMISSION_DENIED"):
        world.client(user).create(dataset_id=dataset)
    revoked = [client.access("RevokePermission", **asked).changed for _ in range(2)]
    assert revoked == [True, False]
    common = (user.user_id, user.soeid, dataset)
    assert recorded(world, admin) == [
        ("PERMISSION_GRANTED", *common, "write"),
        ("PERMISSION_GRANTED", *common, "read"),
        ("PERMISSION_REVOKED", *common, None),
    ]


def test_run_types_are_granted_and_revoked_once_and_shown_in_their_order(
    world: World, admin: User, client: Client
) -> None:
    program = world.user(Role.SERVICE)
    kinds = [jobs_pb2.RUN_TYPE_SQL_TRANSFORM, jobs_pb2.RUN_TYPE_IMPORT]
    for run_type in kinds:
        granted = client.access("GrantRunType", user_soeid=program.soeid, run_type=run_type)
        assert granted.changed
    assert not client.access("GrantRunType", user_soeid=program.soeid, run_type=kinds[0]).changed
    assert list(granted.user.run_types) == kinds[::-1]
    revoked = [client.access("RevokeRunType", user_soeid=program.soeid, run_type=kinds[0]) for _ in range(2)]
    assert [answer.changed for answer in revoked] == [True, False]
    assert list(revoked[1].user.run_types) == [jobs_pb2.RUN_TYPE_IMPORT]
    assert [(event[0], event[4]) for event in recorded(world, admin)] == [
        ("RUN_TYPE_GRANTED", "SQL_TRANSFORM"),
        ("RUN_TYPE_GRANTED", "IMPORT"),
        ("RUN_TYPE_REVOKED", "SQL_TRANSFORM"),
    ]


def test_a_limit_is_set_changed_and_removed_once(world: World, admin: User, client: Client) -> None:
    dataset = world.dataset()
    limits = [3, 3, 5, 0, 0]
    answers = [client.access("SetDatasetLimit", dataset_id=dataset, max_running=most) for most in limits]
    assert [answer.changed for answer in answers] == [True, False, True, True, False]
    assert [answer.dataset.max_running for answer in answers] == limits
    assert [answer.dataset.HasField("max_running") for answer in answers] == [True] * 3 + [False] * 2
    assert [event[4] for event in recorded(world, admin)] == ["3", "5", "none"]


@pytest.mark.parametrize(
    ("rpc", "fields"),
    [
        ("GrantPermission", {"level": READ}),
        ("RevokePermission", {}),
        ("GrantRunType", {"run_type": 1}),
        ("RevokeRunType", {"run_type": 1}),
        ("ListPermissions", {}),
    ],
)
def test_a_user_who_is_not_there_is_named(
    world: World, admin: User, client: Client, rpc: str, fields: dict[str, Any]
) -> None:
    soeid = new_soeid(world)
    if "Permission" in rpc and rpc != "ListPermissions":
        fields = fields | {"dataset_id": world.dataset()}
    with refused("NOT_FOUND", "USER_NOT_FOUND") as refusal:
        client.access(rpc, user_soeid=soeid.upper(), **fields)
    assert refusal.it.metadata == {"user_soeid": soeid}
    assert recorded(world, admin) == []


@pytest.mark.parametrize(
    ("rpc", "fields"),
    [
        ("GrantPermission", {"level": READ}),
        ("SetDatasetLimit", {"max_running": 1}),
        ("SetDatasetLimit", {}),
        ("ListPermissions", {}),
    ],
)
def test_a_data_set_that_is_not_there_is_named(
    world: World, admin: User, client: Client, rpc: str, fields: dict[str, Any]
) -> None:
    user = {"user_soeid": world.user().soeid} if rpc == "GrantPermission" else {}
    with refused("NOT_FOUND", "DATASET_NOT_FOUND") as refusal:
        client.access(rpc, dataset_id=800_000_001, **user, **fields)
    assert refusal.it.metadata == {"dataset_id": "800000001"}
    assert recorded(world, admin) == []


def test_permissions_are_listed_by_user_and_by_data_set_with_what_was_asked_for(
    world: World, client: Client
) -> None:
    first, second = world.dataset(), world.dataset()
    writer = world.user(Role.SERVICE, {second: Level.WRITE, first: Level.ADMIN})
    reader = world.user(grants={first: Level.READ})
    client.access("GrantRunType", user_soeid=writer.soeid, run_type=jobs_pb2.RUN_TYPE_SAMPLING)
    client.access("SetDatasetLimit", dataset_id=first, max_running=2)
    of_writer = client.access("ListPermissions", user_soeid=writer.soeid.upper())
    assert [(each.dataset_id, each.level) for each in of_writer.permissions] == [(first, 3), (second, 2)]
    assert of_writer.user == access_pb2.User(
        user_id=writer.user_id, user_soeid=writer.soeid, role=access_pb2.ROLE_SERVICE, run_types=SAMPLING
    )
    of_first = client.access("ListPermissions", dataset_id=first)
    assert [each.user_soeid for each in of_first.permissions] == [writer.soeid, reader.soeid]
    assert (of_first.dataset.max_running, of_first.HasField("user")) == (2, False)
    both = client.access("ListPermissions", dataset_id=first, user_soeid=reader.soeid)
    assert [each.level for each in both.permissions] == [READ]


def test_pages_of_permissions_hold_everything_once_while_others_change_it(
    world: World, client: Client
) -> None:
    dataset = world.dataset()
    users = [world.user(grants={dataset: Level.READ}) for _ in range(7)]
    seen: list[str] = []
    token = ""
    while True:
        page = client.access("ListPermissions", dataset_id=dataset, page_size=2, page_token=token)
        assert len(page.permissions) <= 2
        seen.extend(each.user_soeid for each in page.permissions)
        if not page.next_page_token:
            break
        # Gone behind the place of the token, and in front of it.
        world.access.revoke(users[0].soeid, dataset)
        world.access.revoke(users[-1].soeid, dataset)
        token = page.next_page_token
    assert seen == [user.soeid for user in users[:-1]]


def test_a_page_of_all_permissions_has_no_more_than_a_thousand(world: World, client: Client) -> None:
    dataset = world.dataset()
    user = world.user(grants={dataset: Level.READ})
    # Ids of its own, far from those that worlds count up.
    world.sql.execute(
        "INSERT INTO datasets SELECT 700000000 + n, repeat('x', 500) FROM generate_series(1, 1200) n"
    )
    world.sql.execute(
        """INSERT INTO dataset_permissions
           SELECT %s, 700000000 + n, 'read' FROM generate_series(1, 1200) n""",
        (user.user_id,),
    )
    page = client.access("ListPermissions", user_soeid=user.soeid, page_size=2**31 - 1)
    assert len(page.permissions) == 1000
    assert page.ByteSize() < 3 * 2**20
    rest = client.access(
        "ListPermissions", user_soeid=user.soeid, page_size=1000, page_token=page.next_page_token
    )
    assert (len(rest.permissions), rest.next_page_token) == (201, "")
    assert len(client.access("ListPermissions", user_soeid=user.soeid).permissions) == 100


@pytest.mark.parametrize("changed", ["another user", "another data set", "no data set", "a damaged token"])
def test_a_page_token_belongs_to_its_list(world: World, client: Client, changed: str) -> None:
    dataset, other = world.dataset(), world.dataset()
    user = world.user(grants={dataset: Level.READ, other: Level.READ})
    world.user(grants={dataset: Level.READ})
    fields: dict[str, Any] = {"dataset_id": dataset, "page_size": 1}
    token = client.access("ListPermissions", **fields).next_page_token
    assert token
    damaged = token[:-3] + ("AAA" if token[-3:] != "AAA" else "BBB")
    changes: dict[str, dict[str, Any]] = {
        "another user": {"user_soeid": user.soeid},
        "another data set": {"dataset_id": other},
        "no data set": {"dataset_id": None},
        "a damaged token": {"page_token": damaged},
    }
    with refused("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN"):
        client.access("ListPermissions", **(fields | {"page_token": token} | changes[changed]))


def test_the_token_of_one_list_is_none_of_the_other(world: World, client: Client) -> None:
    dataset = world.dataset()
    users = [world.user(grants={dataset: Level.WRITE}) for _ in range(2)]
    for _ in range(2):
        world.client(users[0]).create(dataset_id=dataset)
    permissions = client.access("ListPermissions", dataset_id=dataset, page_size=1).next_page_token
    jobs = client.list(filter={"dataset_id": dataset}, page_size=1).next_page_token
    assert permissions
    assert jobs
    with refused("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN"):
        client.list(filter={"dataset_id": dataset}, page_token=permissions)
    with refused("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN"):
        client.access("ListPermissions", dataset_id=dataset, page_token=jobs)


def test_an_admin_may_delete_itself_and_then_may_nothing_more(world: World) -> None:
    admin = world.user(Role.ADMIN)
    client = world.client(admin)
    assert client.access("DeleteUser", user_soeid=admin.soeid).changed
    with refused("UNAUTHENTICATED", "CALLER_UNKNOWN"):
        client.access("ListPermissions")
