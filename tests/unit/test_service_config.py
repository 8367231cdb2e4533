"""The retry policy that clients load: complete, and nothing in it that is not safe."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from jobs.v1 import access_pb2, jobs_pb2, workers_pb2
from jobs_service.transport.worker_requests import LONGEST_WAIT

FILE = Path(__file__).parents[2] / "protos/jobs/v1/service_config.json"
READ = {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}
NOT_RUN = {"RESOURCE_EXHAUSTED"}
FILES = (jobs_pb2, workers_pb2, access_pb2)
ACCESS = access_pb2.DESCRIPTOR.services_by_name["AccessService"]
SAFE: dict[str, set[str]] = {
    "jobs.v1.JobsService/GetJob": READ,
    "jobs.v1.JobsService/GetJobStatus": READ,
    "jobs.v1.JobsService/ListJobs": READ,
    # Unavailable may have been done. Nobody who reads the config knows whether there is a request id.
    "jobs.v1.JobsService/CreateJob": NOT_RUN,
    "jobs.v1.JobsService/CancelJob": NOT_RUN,
    "jobs.v1.JobsService/BatchGetJobs": READ,
    "jobs.v1.JobsService/BatchCreateJobs": NOT_RUN,
    "jobs.v1.JobsService/BatchCancelJobs": NOT_RUN,
    "jobs.v1.JobsService/RetryJob": NOT_RUN,
    # A second claim after an answer that was lost would leave the jobs of the first to their leases.
    "jobs.v1.WorkersService/ClaimJobs": NOT_RUN,
    # May be repeated: the token and what is there decide, and the answer is the same.
    "jobs.v1.WorkersService/HeartbeatJobs": READ,
    "jobs.v1.WorkersService/CompleteJob": READ,
    "jobs.v1.WorkersService/FailJob": READ,
    "jobs.v1.WorkersService/ReleaseJob": READ,
    "jobs.v1.WorkersService/FinishJobs": READ,
    # All of them can be repeated.
    **{f"jobs.v1.AccessService/{method.name}": READ for method in ACCESS.methods},
}


def policies() -> list[tuple[str, dict[str, Any]]]:
    """Each method's name, and the entry that it is in."""
    entries = json.loads(FILE.read_text())["methodConfig"]
    return [(f"{name['service']}/{name['method']}", entry) for entry in entries for name in entry["name"]]


def test_every_rpc_has_one_entry_and_no_entry_is_of_another() -> None:
    services = [service for file in FILES for service in file.DESCRIPTOR.services_by_name.values()]
    methods = [f"{service.full_name}/{method.name}" for service in services for method in service.methods]
    assert sorted(name for name, _ in policies()) == sorted(methods) == sorted(SAFE)


@pytest.mark.parametrize(("name", "entry"), policies(), ids=[name for name, _ in policies()])
def test_each_rpc_is_retried_after_what_is_safe_and_a_few_times(name: str, entry: dict[str, Any]) -> None:
    policy = entry["retryPolicy"]
    assert set(policy["retryableStatusCodes"]) == SAFE[name]
    # gRPC itself takes no more than 5 attempts, whatever stands here.
    assert 2 <= policy["maxAttempts"] <= 5
    assert 0 < float(policy["initialBackoff"][:-1]) < float(policy["maxBackoff"][:-1])


def test_the_package_brings_the_same_file() -> None:
    assert (resources.files("jobs.v1") / "service_config.json").read_text() == FILE.read_text()


@pytest.mark.parametrize("rpc", ["ClaimJobs", "HeartbeatJobs"])
def test_a_call_that_waits_for_as_long_as_it_may_has_more_time_than_that(rpc: str) -> None:
    timeout = dict(policies())[f"jobs.v1.WorkersService/{rpc}"]["timeout"]
    assert float(timeout.removesuffix("s")) > LONGEST_WAIT.total_seconds() + 5
