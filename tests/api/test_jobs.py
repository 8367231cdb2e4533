"""The five RPCs, called as a client calls them."""

import uuid

import pytest

from jobs.v1 import jobs_pb2
from jobs_service.model.caller import Level, Role
from tests.support.client import refused
from tests.support.world import World


@pytest.fixture
def dataset(world: World) -> int:
    return world.dataset()


def test_a_created_job_can_be_read_listed_and_cancelled(world: World, dataset: int) -> None:
    owner = world.client(world.user(grants={dataset: Level.WRITE}))
    created = owner.create(dataset_id=dataset, description="nightly").job
    assert created.status == jobs_pb2.JOB_STATUS_PENDING
    assert owner.get(created.job_id) == created
    status = owner.status(created.job_id)
    assert (status.status, status.done, status.version) == (jobs_pb2.JOB_STATUS_PENDING, False, 1)
    page = owner.list(include_total_size=True)
    assert ([job.job_id for job in page.jobs], page.total_size) == ([created.job_id], 1)
    cancelled = owner.cancel(created.job_id, "not needed")
    assert cancelled == owner.get(created.job_id)
    assert (cancelled.status, cancelled.cancel_reason) == (jobs_pb2.JOB_STATUS_CANCELLED, "not needed")
    assert owner.status(created.job_id).done


def test_a_second_cancel_tells_who_was_first(world: World, dataset: int) -> None:
    user = world.user(grants={dataset: Level.WRITE})
    owner = world.client(user)
    job = owner.create(dataset_id=dataset).job
    owner.cancel(job.job_id)
    with refused("FAILED_PRECONDITION", "JOB_NOT_CANCELLABLE") as refusal:
        owner.cancel(job.job_id)
    assert refusal.it.metadata == {
        "job_id": job.job_id,
        "status": "CANCELLED",
        "cancelled_by": user.soeid,
    }


def test_a_repeated_request_answers_the_job_that_the_first_one_made(world: World, dataset: int) -> None:
    owner = world.client(world.user(grants={dataset: Level.WRITE}))
    request_id = str(uuid.uuid4())
    first = owner.create(dataset_id=dataset, request_id=request_id)
    second = owner.create(dataset_id=dataset, request_id=request_id.upper())
    assert (first.replayed, second.replayed) == (False, True)
    assert first.job == second.job
    assert len(world.events(first.job.job_id)) == 1


def test_a_request_id_is_refused_for_another_request(world: World, dataset: int) -> None:
    owner = world.client(world.user(grants={dataset: Level.WRITE}))
    request_id = str(uuid.uuid4())
    first = owner.create(dataset_id=dataset, request_id=request_id)
    with refused("ALREADY_EXISTS", "REQUEST_ID_CONFLICT") as refusal:
        owner.create(dataset_id=dataset, request_id=request_id, priority=1)
    assert refusal.it.metadata == {"request_id": request_id, "job_id": first.job.job_id}


def test_a_program_makes_a_job_for_a_user(world: World, dataset: int) -> None:
    user = world.user(grants={dataset: Level.WRITE})
    program = world.user(Role.SERVICE)
    job = world.client(program, on_behalf_of=user).create(dataset_id=dataset).job
    assert (job.user_soeid, job.creator_soeid) == (user.soeid, program.soeid)
    assert world.client(user).get(job.job_id) == job
    assert world.client(program).get(job.job_id) == job
    event = world.events(job.job_id)[0]
    assert (event["actor_soeid"], event["on_behalf_of_soeid"]) == (program.soeid, user.soeid)
