"""What somebody tries with the calls about many jobs who wants to see or change others'."""

import uuid
from dataclasses import dataclass

import pytest

from jobs.v1 import errors_pb2, jobs_pb2
from jobs_service.model.caller import Level
from tests.support.client import Client, refused
from tests.support.judge import message
from tests.support.postgres import connect
from tests.support.world import World


@dataclass(frozen=True)
class Scene:
    """A victim with a job on a data set, and a thief who has a data set of its own."""

    world: World
    job: jobs_pb2.Job
    request_id: str
    thief: Client
    thiefs_dataset: int


@pytest.fixture
def scene(world: World) -> Scene:
    secret, own = world.dataset(), world.dataset()
    victim = world.client(world.user(grants={secret: Level.ADMIN}))
    thief = world.client(world.user(grants={own: Level.ADMIN}))
    request_id = str(uuid.uuid4())
    job = victim.create(dataset_id=secret, external_id=f"secret-{secret}", request_id=request_id).job
    return Scene(world, job, request_id, thief, own)


def _without_ids(result: jobs_pb2.JobResult) -> bytes:
    text = result.SerializeToString(deterministic=True)
    return text.replace(result.job_id.encode(), b"<it>")


@pytest.mark.parametrize("rpc", ["BatchGetJobs", "BatchCancelJobs"])
def test_a_hidden_job_is_answered_like_a_missing_one_byte_by_byte(scene: Scene, rpc: str) -> None:
    asked = [scene.job.job_id, str(uuid.uuid4()), scene.job.job_id, str(uuid.UUID(int=0))]
    answer = scene.thief.call(rpc, message(rpc, job_ids=asked))

    hidden, *missing = answer.results

    assert hidden.error.reason == errors_pb2.ERROR_REASON_JOB_NOT_FOUND
    assert {_without_ids(result) for result in missing} == {_without_ids(hidden)}
    assert len(scene.world.events(scene.job.job_id)) == 1


def test_who_may_not_cancel_a_job_neither_locks_it_nor_waits_for_it(scene: Scene) -> None:
    own = scene.thief.create(dataset_id=scene.thiefs_dataset).job.job_id
    with connect(scene.world.database_url) as holder, holder.transaction():
        holder.execute("SELECT FROM jobs WHERE job_id = %s FOR UPDATE", (scene.job.job_id,))
        answer = scene.thief.batch_cancel([scene.job.job_id, own])
    assert answer.results[0].error.reason == errors_pb2.ERROR_REASON_JOB_NOT_FOUND
    assert answer.results[1].job.status == jobs_pb2.JOB_STATUS_CANCELLED


def test_no_filter_chooses_what_is_others(scene: Scene) -> None:
    job = scene.job
    for wanted in (
        {"user_id": job.user_id},
        {"user_soeid": job.user_soeid},
        {"dataset_id": job.dataset_id},
        {"external_id": job.external_id},
        {"statuses": [job.status]},
        {"run_types": [job.run_type]},
        {"create_time_from": job.create_time},
        {"dataset_id": job.dataset_id, "external_id": job.external_id},
        {"user_id": job.user_id, "dataset_id": job.dataset_id, "external_id": job.external_id},
    ):
        assert scene.thief.batch_cancel(filter=wanted) == jobs_pb2.BatchCancelJobsResponse(), wanted
    assert len(scene.world.events(job.job_id)) == 1


def test_the_request_ids_of_others_tell_nothing(scene: Scene) -> None:
    entry = {"dataset_id": scene.thiefs_dataset, "request_id": scene.request_id}
    answer = scene.thief.batch_create([entry])
    assert not answer.results[0].replayed
    assert answer.results[0].job.job_id != scene.job.job_id


def test_a_refused_entry_tells_nothing_of_those_after_it(scene: Scene) -> None:
    closed = {"dataset_id": scene.job.dataset_id}
    missing = {"dataset_id": 2**62}
    answers = []
    for entry in (closed, missing):
        with refused("PERMISSION_DENIED", "DATASET_PERMISSION_DENIED") as denied:
            scene.thief.batch_create([{"dataset_id": scene.thiefs_dataset}, entry, closed])
        answers.append(str(denied.it).replace(str(entry["dataset_id"]), "<it>"))
    assert answers[0] == answers[1]
