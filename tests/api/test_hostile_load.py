"""One caller asks for as much as it can: the others are still answered. Bounded in count and time."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import grpc
import pytest

from jobs.v1 import jobs_pb2
from jobs_service.model.caller import Level
from tests.support.client import Client
from tests.support.world import World

SECONDS = 5.0
"""What another caller's call may take at most while the greedy one is at work: its deadline."""
AT_ONCE = 16

Greed = Callable[[Client, str], object]
GREEDY: dict[str, Greed] = {
    "one huge job, again and again": lambda client, job_id: client.get(job_id),
    "its status": lambda client, job_id: client.status(job_id),
    "lists with a long skip": lambda client, _: client.list(skip=10_000, page_size=1000),
    "lists with a total, in full": lambda client, _: client.list(
        include_total_size=True, page_size=1000, view=jobs_pb2.JOB_VIEW_FULL
    ),
    "cancels of a job that is done": lambda client, job_id: client.cancel(job_id),
    "creates that are refused late": lambda client, _: client.create(
        dataset_id=999_999, run_parameters={"file_path": "a", "rest": ["x" * 1000] * 200}
    ),
}


@pytest.fixture(scope="module")
def crowd(module_world: World) -> tuple[World, int, str]:
    """A data set with a job of 250 KB that is cancelled, and forty others of 60 KB."""
    dataset = module_world.dataset()
    owner = module_world.client(module_world.user(grants={dataset: Level.WRITE}))
    for _ in range(40):
        owner.create(dataset_id=dataset, run_parameters={"file_path": "a", "rest": "x" * 60_000})
    huge = owner.create(
        dataset_id=dataset, run_parameters={"file_path": "a", "rest": "x" * 250_000}
    ).job.job_id
    owner.cancel(huge)
    return module_world, dataset, huge


@pytest.mark.parametrize("name", GREEDY)
def test_others_are_answered_while_one_caller_asks_for(crowd: tuple[World, int, str], name: str) -> None:
    world, dataset, huge = crowd
    greedy = world.client(world.user(grants={dataset: Level.WRITE}))
    own = world.dataset()
    other = world.client(world.user(grants={own: Level.WRITE}))
    going = True

    def work() -> int:
        calls = 0
        while going:
            with suppress(grpc.RpcError):
                GREEDY[name](greedy, huge)
            calls += 1
        return calls

    with ThreadPoolExecutor(AT_ONCE) as pool:
        workers: list[Future[int]] = [pool.submit(work) for _ in range(AT_ONCE)]
        try:
            for _ in range(4):
                request = jobs_pb2.CreateJobRequest(dataset_id=own, run_type=jobs_pb2.RUN_TYPE_EXPLORATION)
                request.run_parameters.update({})
                request.run_parameters.SetInParent()
                job = other.call("CreateJob", request, timeout=SECONDS).job
                for rpc in ("GetJob", "GetJobStatus", "CancelJob"):
                    other.call(rpc, getattr(jobs_pb2, f"{rpc}Request")(job_id=job.job_id), timeout=SECONDS)
                other.call("ListJobs", jobs_pb2.ListJobsRequest(), timeout=SECONDS)
        finally:
            going = False
    assert sum(worker.result() for worker in workers) >= AT_ONCE
