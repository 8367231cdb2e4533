"""Who sees what, and that nothing else shines through: refusals, revocations, what is gone, replays.

What lists hold is in test_list_pages.py.
"""

import uuid
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from jobs.v1 import jobs_pb2
from jobs_service.model.caller import Level, Role
from jobs_service.model.job import JobStatus
from tests.support.client import Client, refused
from tests.support.postgres import connect
from tests.support.world import User, World

NO_DATASET = 99_999
JOB_CALLS = ("GetJob", "GetJobStatus", "CancelJob")


def ask(client: Client, rpc: str, job_id: str) -> Any:
    return client.call(rpc, getattr(jobs_pb2, f"{rpc}Request")(job_id=job_id))


def refusal_without(call: Callable[[], Any], *identifiers: object) -> tuple[Any, ...]:
    """All that a refused call answered, with these ids written as <id>."""

    def masked(value: str | bytes) -> bytes:
        text = value.encode() if isinstance(value, str) else value
        for identifier in identifiers:
            text = text.replace(str(identifier).encode(), b"<id>")
        return text

    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    initial, trailing = error.initial_metadata() or (), error.trailing_metadata() or ()
    return (
        error.code(),
        masked(error.details()),
        sorted((key, masked(value)) for key, value in initial),
        sorted((key, masked(value)) for key, value in trailing),
    )


SAME = (("x-correlation-id", "the-same-for-all"),)


@pytest.mark.parametrize("rpc", JOB_CALLS)
@pytest.mark.parametrize("status", JobStatus)
def test_a_job_one_may_not_see_is_answered_like_one_that_is_not_there(
    world: World, status: JobStatus, rpc: str
) -> None:
    dataset = world.dataset()
    job_id = world.client(world.user(grants={dataset: Level.WRITE})).create(dataset_id=dataset).job.job_id
    world.set_status(job_id, status)
    stranger, program, admin = world.user(), world.user(Role.SERVICE), world.user(Role.ADMIN)
    for client in (
        world.client(stranger),
        world.client(program),
        world.client(program, on_behalf_of=stranger),
        world.client(admin, on_behalf_of=stranger),
    ):
        client.metadata += SAME
        for write in (str.lower, str.upper):
            missing = str(uuid.uuid4())
            hidden_answer = refusal_without(lambda: ask(client, rpc, write(job_id)), job_id)  # noqa: B023 - called now
            missing_answer = refusal_without(lambda: ask(client, rpc, write(missing)), missing)  # noqa: B023 - called now
            assert hidden_answer == missing_answer
            assert hidden_answer[0] is grpc.StatusCode.NOT_FOUND
            assert b"<id>" in dict(hidden_answer[3])["grpc-status-details-bin"]
    assert len(world.events(job_id)) == 1


def test_a_hidden_job_that_is_locked_is_not_there_either(world: World) -> None:
    dataset = world.dataset()
    job_id = world.client(world.user(grants={dataset: Level.WRITE})).create(dataset_id=dataset).job.job_id
    with connect(world.database_url) as other, other.transaction():
        other.execute("SELECT 1 FROM jobs WHERE job_id = %s FOR UPDATE", (job_id,))
        for rpc in JOB_CALLS:
            with refused("NOT_FOUND", "JOB_NOT_FOUND"):
                ask(world.client(world.user()), rpc, job_id)


def test_a_reader_who_cancels_is_told_what_is_missing(world: World) -> None:
    dataset = world.dataset()
    reader = world.client(world.user(grants={dataset: Level.READ}))
    job_id = world.client(world.user(grants={dataset: Level.WRITE})).create(dataset_id=dataset).job.job_id
    with refused("PERMISSION_DENIED", "JOB_PERMISSION_DENIED") as refusal:
        reader.cancel(job_id)
    assert refusal.it.metadata == {"job_id": job_id, "required_permission": "write"}
    assert reader.get(job_id).status == jobs_pb2.JOB_STATUS_PENDING


@pytest.mark.parametrize("validate_only", [False, True])
def test_only_an_admin_learns_which_data_sets_exist(world: World, validate_only: bool) -> None:
    own, foreign = world.dataset(), world.dataset()
    user, admin = world.user(grants={own: Level.WRITE}), world.user(Role.ADMIN)

    def sql(client: Client, source: int) -> Any:
        sources = [{"dataset_id": own, "alias": "a"}, {"dataset_id": source, "alias": "b"}]
        return client.create(
            dataset_id=own,
            run_type=jobs_pb2.RUN_TYPE_SQL_TRANSFORM,
            run_parameters={"sql": "select 1", "sources": sources},
            validate_only=validate_only,
        )

    def plain(client: Client, dataset_id: int) -> Any:
        return client.create(dataset_id=dataset_id, validate_only=validate_only)

    for create, level in ((plain, "write"), (sql, "read")):
        for client in (world.client(user), world.client(admin, on_behalf_of=user)):
            client.metadata += SAME
            answers = [
                refusal_without(lambda: create(client, number), number)  # noqa: B023 - called now
                for number in (foreign, NO_DATASET)
            ]
            assert answers[0] == answers[1]
            with refused("PERMISSION_DENIED", "DATASET_PERMISSION_DENIED") as refusal:
                create(client, NO_DATASET)
            assert refusal.it.metadata == {"dataset_id": str(NO_DATASET), "required_permission": level}
        with refused("NOT_FOUND", "DATASET_NOT_FOUND") as refusal:
            create(world.client(admin), NO_DATASET)
        assert refusal.it.metadata == {"dataset_id": str(NO_DATASET)}
        assert create(world.client(admin), foreign).job.dataset_id


def test_what_is_revoked_is_refused_by_the_next_call(world: World) -> None:
    dataset = world.dataset()
    user = world.user(grants={dataset: Level.WRITE})
    client = world.client(user)
    job_id = world.client(world.user(grants={dataset: Level.WRITE})).create(dataset_id=dataset).job.job_id

    def listed() -> list[str]:
        return [job.job_id for job in client.list(filter={"dataset_id": dataset}).jobs]

    client.create(dataset_id=dataset, validate_only=True)
    world.access.grant(user.soeid, dataset, Level.READ)
    with refused("PERMISSION_DENIED", "DATASET_PERMISSION_DENIED"):
        client.create(dataset_id=dataset)
    with refused("PERMISSION_DENIED", "JOB_PERMISSION_DENIED"):
        client.cancel(job_id)
    assert listed() == [client.get(job_id).job_id]
    world.access.revoke(user.soeid, dataset)
    for rpc in JOB_CALLS:
        with refused("NOT_FOUND", "JOB_NOT_FOUND"):
            ask(client, rpc, job_id)
    assert listed() == []
    world.access.put_user(user.soeid, Role.ADMIN)
    assert listed() == [job_id]
    world.access.put_user(user.soeid, Role.USER)
    assert listed() == []
    world.sql.execute("DELETE FROM users WHERE user_id = %s", (user.user_id,))
    with refused("UNAUTHENTICATED", "CALLER_UNKNOWN"):
        listed()


def seen_by(world: World, user: User, job: jobs_pb2.Job) -> jobs_pb2.Job | None:
    """The job as GetJob answers it, None where it is not found; the list must agree."""
    client = world.client(user)
    page = client.list(filter={"dataset_id": job.dataset_id}, view=jobs_pb2.JOB_VIEW_FULL)
    try:
        found = client.get(job.job_id)
    except grpc.RpcError:
        assert list(page.jobs) == []
        return None
    assert list(page.jobs) == [found]
    assert client.status(job.job_id).job_id == job.job_id
    return found


def test_jobs_of_a_data_set_that_is_gone_stay_with_owner_creator_and_admin(world: World) -> None:
    dataset = world.dataset()
    owner, reader = world.user(grants={dataset: Level.WRITE}), world.user(grants={dataset: Level.READ})
    program, admin = world.user(Role.SERVICE), world.user(Role.ADMIN)
    job = world.client(program, on_behalf_of=owner).create(dataset_id=dataset).job
    assert seen_by(world, reader, job) == job
    world.sql.execute("DELETE FROM datasets WHERE dataset_id = %s", (dataset,))
    expected = jobs_pb2.Job()
    expected.CopyFrom(job)
    expected.dataset_name = ""
    assert [seen_by(world, user, job) for user in (owner, program, admin)] == [expected] * 3
    assert seen_by(world, reader, job) is None
    assert world.client(owner).cancel(job.job_id).status == jobs_pb2.JOB_STATUS_CANCELLED


def test_jobs_of_an_owner_who_is_gone_go_on_without_one(world: World) -> None:
    dataset = world.dataset()
    owner, reader = world.user(grants={dataset: Level.WRITE}), world.user(grants={dataset: Level.READ})
    program, admin = world.user(Role.SERVICE), world.user(Role.ADMIN)
    job = world.client(program, on_behalf_of=owner).create(dataset_id=dataset).job
    world.sql.execute("DELETE FROM users WHERE user_id = %s", (owner.user_id,))
    for user in (program, admin, reader):
        found = seen_by(world, user, job)
        assert found is not None
        assert (found.HasField("user_id"), found.user_soeid) == (False, "")
        assert found.creator_soeid == program.soeid
    # Ids are never reused: whoever gets the SOEID next is somebody else.
    world.access.put_user(owner.soeid, Role.USER)
    found = seen_by(world, program, job)
    assert found is not None
    assert not found.HasField("user_id")
    assert seen_by(world, world.user(), job) is None
    assert world.client(program).cancel(job.job_id).status == jobs_pb2.JOB_STATUS_CANCELLED


def test_a_repeated_request_finds_its_job_after_the_permission_is_gone(world: World) -> None:
    dataset = world.dataset()
    user = world.user(grants={dataset: Level.WRITE})
    client, request_id = world.client(user), str(uuid.uuid4())
    first = client.create(dataset_id=dataset, request_id=request_id).job
    world.access.revoke(user.soeid, dataset)
    world.set_status(first.job_id, JobStatus.RUNNING)
    again = client.create(dataset_id=dataset, request_id=request_id)
    assert (again.replayed, again.job) == (True, client.get(first.job_id))
    with refused("PERMISSION_DENIED", "DATASET_PERMISSION_DENIED"):
        client.create(dataset_id=dataset, request_id=request_id, priority=5)
    with refused("PERMISSION_DENIED", "DATASET_PERMISSION_DENIED"):
        client.create(dataset_id=dataset)


def test_a_request_id_belongs_to_its_owner_and_creator(world: World) -> None:
    dataset = world.dataset()
    owner, other = (world.user(grants={dataset: Level.WRITE}) for _ in range(2))
    program, request_id = world.user(Role.SERVICE, {dataset: Level.WRITE}), str(uuid.uuid4())
    clients = [
        world.client(owner),
        world.client(other),
        world.client(program),
        world.client(program, on_behalf_of=owner),
        world.client(program, on_behalf_of=other),
    ]
    answers = [client.create(dataset_id=dataset, request_id=request_id) for client in clients]
    assert len({answer.job.job_id for answer in answers}) == 5
    assert not any(answer.replayed for answer in answers)


def test_validate_only_writes_nothing_and_answers_the_job_as_it_would_be(world: World) -> None:
    dataset, request_id = world.dataset(), str(uuid.uuid4())
    client = world.client(world.user(grants={dataset: Level.WRITE}))
    fields: dict[str, Any] = {"dataset_id": dataset, "description": "nightly", "priority": 7}
    fields |= {"external_id": "a", "source_commit_id": "AB" * 32, "request_id": request_id}
    before = world.counts()
    planned = client.create(**fields, validate_only=True)
    assert world.counts() == before
    made = client.create(**fields)
    assert (planned.replayed, made.replayed) == (False, False)
    for field in ("job_id", "create_time", "available_time", "update_time"):
        made.job.ClearField(field)
    assert planned.job == made.job
    before = world.counts()
    assert client.create(**fields, validate_only=True).job == planned.job
    with refused("ALREADY_EXISTS", "REQUEST_ID_CONFLICT"):
        client.create(**(fields | {"priority": 8}), validate_only=True)
    with refused("PERMISSION_DENIED", "DATASET_PERMISSION_DENIED"):
        world.client(world.user()).create(**fields, validate_only=True)
    assert world.counts() == before


@pytest.mark.parametrize("offset", [0, 1])
def test_who_may_not_call_for_others_learns_nobodys_id_from_the_parameters(world: World, offset: int) -> None:
    other = world.user()
    parameters = {"file_path": "a", "user_id": other.user_id + offset}
    with refused("PERMISSION_DENIED", "ROLE_REQUIRED"):
        world.client(world.user(), on_behalf_of=other).create(run_parameters=parameters)


def test_a_program_names_no_other_owner_in_the_parameters(world: World) -> None:
    dataset = world.dataset()
    owner = world.user(grants={dataset: Level.WRITE})
    program = world.client(world.user(Role.SERVICE), on_behalf_of=owner)
    right = {"file_path": "a", "user_id": owner.user_id}
    assert program.create(dataset_id=dataset, run_parameters=right).job.user_id == owner.user_id
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        program.create(dataset_id=dataset, run_parameters=right | {"user_id": owner.user_id + 1})
    assert list(refusal.it.violations) == ["run_parameters.user_id"]
