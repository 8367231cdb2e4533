"""BatchCancelJobs: each job for itself, by ids or by a filter."""

import uuid
from typing import Any

import pytest

from jobs.v1 import errors_pb2, jobs_pb2
from jobs_service.model.caller import Level, Role
from jobs_service.model.job import JobStatus
from tests.support.client import Client, refused
from tests.support.postgres import connect
from tests.support.world import World

CANCELLED = jobs_pb2.JOB_STATUS_CANCELLED
DENIED = errors_pb2.ERROR_REASON_JOB_PERMISSION_DENIED
ENDED = errors_pb2.ERROR_REASON_JOB_NOT_CANCELLABLE
MISSING = errors_pb2.ERROR_REASON_JOB_NOT_FOUND
HELD = errors_pb2.ERROR_REASON_DATABASE_UNAVAILABLE


def _cancelled(answer: jobs_pb2.BatchCancelJobsResponse) -> list[str]:
    return [result.job_id for result in answer.results if result.HasField("job")]


def _ids(client: Client, dataset: int, count: int = 1, **fields: Any) -> list[str]:
    return [client.create(dataset_id=dataset, **fields).job.job_id for _ in range(count)]


def test_each_job_is_cancelled_or_says_why_not(world: World) -> None:
    dataset, other = world.dataset(), world.dataset()
    writer = world.user(grants={dataset: Level.WRITE, other: Level.READ})
    client = world.client(writer)
    owner_of_other = world.client(world.user(grants={other: Level.WRITE}))
    first, done, last = _ids(client, dataset, 3)
    world.set_status(done, JobStatus.COMPLETED)
    [only_read], nowhere = _ids(owner_of_other, other), str(uuid.uuid4())
    asked = [last, only_read, done, nowhere, first.upper(), last]

    answer = client.batch_cancel(asked, reason="not needed")

    assert [result.job_id for result in answer.results] == [job_id.lower() for job_id in asked]
    assert _cancelled(answer) == [last, first]
    reasons = [result.error.reason for result in answer.results if result.HasField("error")]
    assert reasons == [DENIED, ENDED, MISSING, ENDED]
    assert answer.results[5].error.metadata["cancelled_by"] == writer.soeid
    for job in (answer.results[0].job, answer.results[4].job):
        assert job == client.get(job.job_id, jobs_pb2.JOB_VIEW_BASIC)
        assert (job.status, job.cancel_reason, job.version) == (
            jobs_pb2.JOB_STATUS_CANCELLED,
            "not needed",
            2,
        )
        assert [event["type"] for event in world.events(job.job_id)] == ["CREATED", "CANCELLED"]
    assert client.get(only_read).status == jobs_pb2.JOB_STATUS_PENDING


def test_a_filter_chooses_what_is_pending_or_running_and_matches(world: World) -> None:
    dataset, other = world.dataset(), world.dataset()
    client = world.client(world.user(grants={dataset: Level.WRITE, other: Level.WRITE}))
    pending, running, done, failed = _ids(client, dataset, 4)
    world.set_status(running, JobStatus.RUNNING)
    world.set_status(done, JobStatus.COMPLETED)
    world.set_status(failed, JobStatus.FAILED)
    [elsewhere] = _ids(client, other)
    named = _ids(client, dataset, 1, external_id="nightly")

    assert _cancelled(client.batch_cancel(filter={"dataset_id": dataset, "statuses": [3, 4, 5]})) == []
    assert _cancelled(client.batch_cancel(filter={"external_id": "nightly", "dataset_id": dataset})) == named
    answer = client.batch_cancel(filter={"dataset_id": dataset, "statuses": [2, 3]})
    assert _cancelled(answer) == [running]
    assert _cancelled(client.batch_cancel(filter={"dataset_id": dataset})) == [pending]
    assert client.get(elsewhere).status == jobs_pb2.JOB_STATUS_PENDING


@pytest.mark.parametrize(
    ("who", "may"),
    [("owner", True), ("creator", True), ("writer", True), ("data set's admin", True), ("admin", True),
     ("reader", False), ("stranger", False)],
)  # fmt: skip
def test_a_filter_chooses_only_what_the_caller_may_cancel(world: World, who: str, may: bool) -> None:
    dataset = world.dataset()
    owner = world.user(grants={dataset: Level.WRITE})
    creator = world.user(Role.SERVICE)
    callers = {
        "owner": owner,
        "creator": creator,
        "writer": world.user(grants={dataset: Level.WRITE}),
        "data set's admin": world.user(grants={dataset: Level.ADMIN}),
        "admin": world.user(Role.ADMIN),
        "reader": world.user(grants={dataset: Level.READ}),
        "stranger": world.user(),
    }
    ids = _ids(world.client(creator, on_behalf_of=owner), dataset, 2)
    world.access.revoke(owner.soeid, dataset)

    answers = [
        world.client(callers[who]).batch_cancel(filter={"dataset_id": dataset}),
        world.client(callers[who]).batch_cancel(filter={"user_id": owner.user_id}),
    ]

    assert _cancelled(answers[0]) == (ids[::-1] if may else [])
    assert [len(answer.results) for answer in answers] == [2 if may else 0, 0]


def test_on_behalf_of_a_user_only_that_users_jobs_are_chosen(world: World) -> None:
    dataset, other = world.dataset(), world.dataset()
    user = world.user(grants={dataset: Level.WRITE})
    admin = world.user(Role.ADMIN)
    [own] = _ids(world.client(user), dataset)
    [elsewhere] = _ids(world.client(admin), other)
    [by_admin] = _ids(world.client(admin), dataset)

    answer = world.client(admin, on_behalf_of=user).batch_cancel(filter={"statuses": [1]})

    assert _cancelled(answer) == [by_admin, own]
    assert world.client(admin).get(elsewhere).status == jobs_pb2.JOB_STATUS_PENDING


def test_an_owner_whom_nobody_knows_is_never_no_filter(world: World) -> None:
    dataset = world.dataset()
    client = world.client(world.user(grants={dataset: Level.WRITE}))
    [job_id] = _ids(client, dataset)
    for user in ({"user_id": 2**62}, {"user_soeid": "zz00000"}):
        with refused("NOT_FOUND", "USER_NOT_FOUND"):
            client.batch_cancel(filter=user | {"dataset_id": dataset})
    assert client.get(job_id).status == jobs_pb2.JOB_STATUS_PENDING


def test_more_than_a_thousand_are_cancelled_call_after_call_newest_first(world: World) -> None:
    dataset = world.dataset()
    client = world.client(world.user(grants={dataset: Level.WRITE}))
    made = [
        result.job.job_id
        for _ in range(2)
        for result in client.batch_create([{"dataset_id": dataset}] * 600).results
    ]

    first = client.batch_cancel(filter={"dataset_id": dataset})
    second = client.batch_cancel(filter={"dataset_id": dataset})

    assert (len(_cancelled(first)), first.more) == (1000, True)
    assert (len(_cancelled(second)), second.more) == (200, False)
    assert set(_cancelled(first)[:600]) == set(made[600:])
    assert sorted(_cancelled(first) + _cancelled(second)) == sorted(made)


def test_a_job_that_another_transaction_holds_spoils_none_of_the_others(world: World) -> None:
    dataset = world.dataset()
    client = world.client(world.user(grants={dataset: Level.WRITE}))
    held, *free = _ids(client, dataset, 3)
    with connect(world.database_url) as holder, holder.transaction():
        holder.execute("SELECT FROM jobs WHERE job_id = %s FOR UPDATE", (held,))
        answer = client.batch_cancel([held, *free])
    assert answer.results[0].error.reason == HELD
    assert _cancelled(answer) == free


def test_jobs_that_have_no_room_in_the_answer_are_shortened(world: World) -> None:
    dataset = world.dataset()
    client = world.client(world.user(grants={dataset: Level.WRITE}))
    made = client.batch_create(
        [{"dataset_id": dataset, "description": "x" * 1000, "external_id": "y" * 128}] * 1000
    )
    ids = [result.job.job_id for result in made.results]
    world.sql.execute(
        "UPDATE jobs SET progress = jsonb_build_object('message', repeat('p', 500)) WHERE dataset_id = %s",
        (dataset,),
    )

    answer = client.batch_cancel(ids, reason="z" * 500)

    assert answer.ByteSize() < 3 * 2**20
    assert 0 < answer.shortened < 1000
    assert _cancelled(answer) == ids
    for number, result in enumerate(answer.results):
        whole = number < 1000 - answer.shortened
        assert result.job.description == ("x" * 1000 if whole else "")
        assert result.job.cancel_reason == ("z" * 500 if whole else "")
        assert (result.job.status, result.job.version) == (jobs_pb2.JOB_STATUS_CANCELLED, 2)
        assert result.job.create_time == made.results[number].job.create_time
