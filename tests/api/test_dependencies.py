"""Jobs that wait for others, over the wire: what is answered, to whom, and once only."""

import uuid
from datetime import timedelta
from typing import Any

import pytest

from jobs.v1 import jobs_pb2
from jobs_service.model.caller import Level, Role
from jobs_service.model.job import JobStatus
from tests.support.client import Client, refused
from tests.support.service import wait_until
from tests.support.world import User, World

PENDING, CANCELLED = jobs_pb2.JOB_STATUS_PENDING, jobs_pb2.JOB_STATUS_CANCELLED


@pytest.fixture
def dataset(world: World) -> int:
    return world.dataset()


@pytest.fixture
def owner(world: World, dataset: int) -> User:
    return world.user(grants={dataset: Level.WRITE})


@pytest.fixture
def client(world: World, owner: User) -> Client:
    return world.client(owner)


def waiting_on(client: Client, job_id: str) -> dict[str, list[str]]:
    """What each read says that a job waits for."""
    listed = client.list(filter={"user_id": client.get(job_id).user_id}).jobs
    return {
        "GetJob": list(client.get(job_id).waiting_on_job_ids),
        "BASIC": list(client.get(job_id, view=jobs_pb2.JOB_VIEW_BASIC).waiting_on_job_ids),
        "ListJobs": [each for job in listed if job.job_id == job_id for each in job.waiting_on_job_ids],
    }


def test_a_job_shows_what_it_waits_for_and_is_cancelled_with_it(client: Client, dataset: int) -> None:
    first, second = (client.create(dataset_id=dataset).job.job_id for _ in range(2))
    made = client.create(dataset_id=dataset, depends_on_job_ids=[second.upper(), first]).job
    assert list(made.waiting_on_job_ids) == sorted([first, second])
    assert waiting_on(client, made.job_id) == dict.fromkeys(
        ["GetJob", "BASIC", "ListJobs"], sorted([first, second])
    )
    client.cancel(second)
    ended = client.get(made.job_id)
    assert (ended.status, ended.cancelled_by_soeid) == (CANCELLED, "")
    assert ended.cancel_reason == f"dependency {second} ended CANCELLED"
    assert not ended.waiting_on_job_ids


def test_a_cancel_with_more_dependants_than_it_takes_along_is_worked_off(
    client: Client, dataset: int
) -> None:
    first = client.create(dataset_id=dataset).job.job_id
    reference = f"many-{uuid.uuid4()}"
    for _ in range(150):
        client.create(dataset_id=dataset, depends_on_job_ids=[first], external_id=reference)
    client.cancel(first)

    def left() -> int:
        wanted = {"external_id": reference, "statuses": [PENDING]}
        return len(client.list(filter=wanted, page_size=1000).jobs)

    wait_until(lambda: left() == 0, 20, "upkeep has told everybody")


def test_a_job_has_the_attempts_and_the_delay_that_were_asked_for(client: Client, dataset: int) -> None:
    delay = timedelta(hours=1, microseconds=1)
    made = client.create(dataset_id=dataset, max_attempts=7, start_delay=delay).job
    plain = client.create(dataset_id=dataset).job
    assert (made.max_attempts, plain.max_attempts) == (7, 3)
    assert made.available_time.ToDatetime() - made.create_time.ToDatetime() == delay
    assert plain.available_time == plain.create_time
    assert client.get(made.job_id) == made


def test_what_is_not_visible_can_not_be_waited_for_and_looks_like_what_is_not_there(
    world: World, client: Client, dataset: int
) -> None:
    other = world.dataset()
    theirs = world.user(grants={other: Level.WRITE})
    hidden = world.client(theirs).create(dataset_id=other).job.job_id
    missing = str(uuid.uuid4())
    for job_id in (hidden, missing):
        for fields in ({}, {"validate_only": True}, {"on_dependency_failure": 2}):
            with refused("NOT_FOUND", "DEPENDENCY_NOT_FOUND") as error:
                client.create(dataset_id=dataset, depends_on_job_ids=[job_id], **fields)
            assert error.it.metadata == {"job_id": job_id}
            assert error.it.message.replace(job_id, "") == (
                "There is no job  to wait for, or it is not visible to the caller."
            )


@pytest.mark.parametrize("who", ["owner", "creator", "reader", "admin"])
def test_who_sees_a_job_may_wait_for_it(world: World, who: str) -> None:
    mine, theirs = world.dataset(), world.dataset()
    grants = {mine: Level.WRITE}
    user = {
        "owner": lambda: world.user(grants={**grants, theirs: Level.WRITE}),
        "creator": lambda: world.user(Role.SERVICE, grants),
        "reader": lambda: world.user(grants={**grants, theirs: Level.READ}),
        "admin": lambda: world.user(Role.ADMIN),
    }[who]()
    writer = user if who == "owner" else world.user(grants={theirs: Level.WRITE})
    maker = world.client(user, on_behalf_of=writer) if who == "creator" else world.client(writer)
    job_id = maker.create(dataset_id=theirs).job.job_id
    if who == "owner":
        world.access.revoke(user.soeid, theirs)
    made = world.client(user).create(dataset_id=mine, depends_on_job_ids=[job_id]).job
    assert list(made.waiting_on_job_ids) == [job_id]


def test_a_program_waits_for_nobody_with_more_than_its_users_eyes(world: World, dataset: int) -> None:
    program, user = world.user(Role.SERVICE), world.user(grants={dataset: Level.WRITE})
    other = world.dataset()
    theirs = world.user(grants={other: Level.WRITE})
    made_by_program = world.client(program, on_behalf_of=theirs).create(dataset_id=other).job.job_id
    with refused("NOT_FOUND", "DEPENDENCY_NOT_FOUND"):
        world.client(program, on_behalf_of=user).create(
            dataset_id=dataset, depends_on_job_ids=[made_by_program]
        )


def test_a_permission_that_is_missing_is_said_before_anything_of_a_dependency(
    world: World, client: Client, dataset: int
) -> None:
    mine = client.create(dataset_id=dataset).job.job_id
    client.cancel(mine)
    for job_id in (mine, str(uuid.uuid4())):
        with refused("PERMISSION_DENIED", "DATASET_PERMISSION_DENIED"):
            client.create(dataset_id=world.dataset(), depends_on_job_ids=[job_id])


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.CANCELLED])
def test_what_has_failed_is_waited_for_by_who_keeps_waiting_alone(
    world: World, client: Client, dataset: int, status: JobStatus
) -> None:
    first = client.create(dataset_id=dataset).job.job_id
    world.set_status(first, status)
    for fields in ({}, {"validate_only": True}, {"on_dependency_failure": 1}):
        with refused("FAILED_PRECONDITION", "DEPENDENCY_NOT_SATISFIABLE") as error:
            client.create(dataset_id=dataset, depends_on_job_ids=[first], **fields)
        assert error.it.metadata == {"job_id": first, "status": status.value}
    kept = client.create(dataset_id=dataset, depends_on_job_ids=[first], on_dependency_failure=2).job
    assert list(kept.waiting_on_job_ids) == [first]


def test_a_repeated_request_is_the_same_whatever_became_of_its_dependencies(
    world: World, client: Client, dataset: int
) -> None:
    first, second = (client.create(dataset_id=dataset).job.job_id for _ in range(2))
    asked: dict[str, Any] = {
        "dataset_id": dataset,
        "request_id": str(uuid.uuid4()),
        "depends_on_job_ids": [first, second],
        "max_attempts": 3,
    }
    made = client.create(**asked).job
    others: list[dict[str, Any]] = [
        {"depends_on_job_ids": [second]},
        {"depends_on_job_ids": []},
        {"max_attempts": 4},
        {"max_attempts": None},
        {"on_dependency_failure": 2},
        {"start_delay": timedelta(0)},
        {"run_timeout": timedelta(hours=24)},
        {"retry_policy": {"backoff_multiplier": 2.0}},
    ]
    for other in others:
        changed = {name: value for name, value in {**asked, **other}.items() if value is not None}
        with refused("ALREADY_EXISTS", "REQUEST_ID_CONFLICT"):
            client.create(**changed)
    world.set_status(first, JobStatus.FAILED)
    again = client.create(**asked | {"depends_on_job_ids": [second.upper(), first]})
    assert (again.job.job_id, again.replayed) == (made.job_id, True)
