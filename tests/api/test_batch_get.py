"""BatchGetJobs: one result for each id, in the order asked, and no more than an answer holds."""

import uuid

import grpc
import pytest

from jobs.v1 import errors_pb2, jobs_pb2
from jobs_service.model.caller import Level
from tests.support.client import refused
from tests.support.world import World

MIB = 2**20


def test_each_id_has_its_own_result_in_the_order_asked(world: World) -> None:
    dataset, other_dataset = world.dataset(), world.dataset()
    client = world.client(world.user(grants={dataset: Level.WRITE}))
    stranger = world.client(world.user(grants={other_dataset: Level.WRITE}))
    ids = [client.create(dataset_id=dataset, description=f"number {n}").job.job_id for n in range(3)]
    hidden = stranger.create(dataset_id=other_dataset).job.job_id
    nowhere = str(uuid.uuid4())
    asked = [ids[2], hidden.upper(), ids[0], nowhere, ids[2]]

    answer = client.batch_get(asked)

    assert [result.job_id for result in answer.results] == [one.lower() for one in asked]
    assert answer.not_read == 0
    assert [result.job.description for result in answer.results] == [
        "number 2",
        "",
        "number 0",
        "",
        "number 2",
    ]
    for result, job_id in ((answer.results[1], hidden), (answer.results[3], nowhere)):
        with refused("NOT_FOUND", "JOB_NOT_FOUND") as alone:
            client.get(job_id)
        assert result.error == errors_pb2.ItemError(
            code=grpc.StatusCode.NOT_FOUND.value[0],
            reason=errors_pb2.ERROR_REASON_JOB_NOT_FOUND,
            message=alone.it.message,
            metadata=alone.it.metadata,
        )


@pytest.mark.parametrize(
    "view", [jobs_pb2.JOB_VIEW_UNSPECIFIED, jobs_pb2.JOB_VIEW_BASIC, jobs_pb2.JOB_VIEW_FULL]
)
def test_a_result_holds_what_get_job_answers_in_that_view(
    world: World, view: jobs_pb2.JobView.ValueType
) -> None:
    dataset = world.dataset()
    client = world.client(world.user(grants={dataset: Level.WRITE}))
    job_id = client.create(dataset_id=dataset, source_commit_id="ab" * 32).job.job_id

    answer = client.batch_get([job_id], view)

    assert answer.results[0].job == client.get(job_id, view or jobs_pb2.JOB_VIEW_BASIC)


def test_an_answer_ends_where_it_is_full_and_says_how_many_were_not_read(world: World) -> None:
    dataset = world.dataset()
    client = world.client(world.user(grants={dataset: Level.WRITE}))
    large = {"file_path": "a.csv", "note": "x" * (250 * 1024)}
    ids = [client.create(dataset_id=dataset, run_parameters=large).job.job_id for _ in range(2)] * 10

    read: list[str] = []
    while len(read) < len(ids):
        answer = client.batch_get(ids[len(read) :], jobs_pb2.JOB_VIEW_FULL)
        assert answer.results
        assert answer.ByteSize() <= 3 * MIB
        assert len(answer.results) + answer.not_read == len(ids) - len(read)
        assert all(result.job.run_parameters["note"] == large["note"] for result in answer.results)
        read += [result.job_id for result in answer.results]

    assert read == ids
    assert client.batch_get(ids).not_read == 0


def test_a_thousand_jobs_are_one_call(world: World) -> None:
    dataset = world.dataset()
    client = world.client(world.user(grants={dataset: Level.WRITE}))
    job_id = client.create(dataset_id=dataset).job.job_id
    asked = [job_id, *(str(uuid.uuid4()) for _ in range(998)), job_id]

    answer = client.batch_get(asked)

    assert [result.WhichOneof("result") for result in answer.results] == ["job", *["error"] * 998, "job"]


def test_who_may_not_call_gets_no_results_at_all(world: World) -> None:
    user, other = world.user(), world.user()
    with refused("PERMISSION_DENIED", "ROLE_REQUIRED"):
        world.client(user, on_behalf_of=other).batch_get([str(uuid.uuid4())])
