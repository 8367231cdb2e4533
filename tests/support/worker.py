"""A worker as another team would write it: claims, and calls that carry the claim's token."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import grpc
from google.protobuf import duration_pb2

from jobs.v1 import errors_pb2, jobs_pb2, workers_pb2, workers_pb2_grpc
from jobs_service.model.caller import Role
from jobs_service.model.job import RunType
from jobs_service.transport.tokens import make_token
from tests.support.client import RichError, rich_error
from tests.support.service import wait_until
from tests.support.world import KEY, User, World

RUN_TYPES = (jobs_pb2.RUN_TYPE_IMPORT,)
NO_BACKOFF = jobs_pb2.RetryPolicy(initial_backoff=duration_pb2.Duration())


class Lease(NamedTuple):
    """What a worker must keep of a claim."""

    job_id: str
    lease_token: str


class Refused(NamedTuple):
    """Why a worker's write was refused, by a call of its own or as an item of FinishJobs."""

    reason: str
    metadata: dict[str, str]


class Worker:
    """Calls WorkersService as one worker. seconds: the deadline of every call, beside what it waits."""

    def __init__(
        self, channel: grpc.Channel, token: str, name: str = "worker", *, seconds: float = 30
    ) -> None:
        self.stub = workers_pb2_grpc.WorkersServiceStub(channel)
        self.metadata = (("authorization", f"Bearer {token}"),)
        self.name = name
        self._seconds = seconds

    def call(self, rpc: str, request: Any, *, wait: float = 0) -> Any:
        """Call an RPC by its name. wait: so much longer."""
        timeout = wait + self._seconds
        return getattr(self.stub, rpc)(request, metadata=self.metadata, timeout=timeout)

    def claims(
        self,
        max_jobs: int = 1,
        *,
        lease: float = 60,
        wait: float = 0,
        run_types: Sequence[Any] = RUN_TYPES,
    ) -> Sequence[workers_pb2.Claim]:
        """ClaimJobs: what was claimed."""
        request = workers_pb2.ClaimJobsRequest(
            worker_id=self.name,
            run_types=run_types,
            max_jobs=max_jobs,
            lease_duration=duration(lease),
            wait_timeout=duration(wait),
        )
        found: workers_pb2.ClaimJobsResponse = self.call("ClaimJobs", request, wait=wait)
        return found.claims

    def take(self, job_id: str, *, lease: float = 60) -> Lease:
        """Claim this job, which must be the next one, as soon as it is ready."""
        [claim] = wait_until(lambda: self.claims(lease=lease), 15, f"a claim of {job_id}")
        assert claim.job.job_id == job_id
        return lease_of(claim)

    def heartbeat(
        self, *leases: Lease, progress: Any = None, lease: float = 60, wait: float = 0
    ) -> list[str]:
        """HeartbeatJobs: lease_expire_time, cancel_requested or lost, of each."""
        request = workers_pb2.HeartbeatJobsRequest(
            leases=[
                workers_pb2.Heartbeat(job_id=one.job_id, lease_token=one.lease_token, progress=progress)
                for one in leases
            ],
            lease_duration=duration(lease),
            wait_timeout=duration(wait),
        )
        results = self.call("HeartbeatJobs", request, wait=wait).results
        assert [found.job_id for found in results] == [one.job_id for one in leases]
        return [str(found.WhichOneof("result")) for found in results]

    def complete(self, lease: Lease, summary: Mapping[str, Any] | None = None) -> jobs_pb2.Job:
        """CompleteJob."""
        answer: workers_pb2.CompleteJobResponse = self.call("CompleteJob", completion(lease, summary))
        return answer.job

    def fail(self, lease: Lease, **fields: Any) -> workers_pb2.FailJobResponse:
        """FailJob."""
        answer: workers_pb2.FailJobResponse = self.call("FailJob", failure(lease, **fields))
        return answer

    def release(self, lease: Lease, delay: float = 0) -> jobs_pb2.Job:
        """ReleaseJob."""
        answer: workers_pb2.ReleaseJobResponse = self.call("ReleaseJob", giving_back(lease, delay))
        return answer.job

    def finish(self, *requests: Any) -> Sequence[workers_pb2.FinishJobsResult]:
        """FinishJobs with these requests of the three single RPCs."""
        items = workers_pb2.FinishJobsRequest(items=[item(request) for request in requests])
        answer: workers_pb2.FinishJobsResponse = self.call("FinishJobs", items)
        assert [found.job_id for found in answer.results] == [request.job_id for request in requests]
        return answer.results


def duration(seconds: float) -> duration_pb2.Duration:
    """The same as a message."""
    message = duration_pb2.Duration()
    message.FromTimedelta(timedelta(seconds=seconds))
    return message


def lease_of(claim: workers_pb2.Claim) -> Lease:
    """What to keep of it."""
    return Lease(claim.job.job_id, claim.lease_token)


def completion(lease: Lease, summary: Mapping[str, Any] | None = None) -> workers_pb2.CompleteJobRequest:
    """A request of CompleteJob."""
    request = workers_pb2.CompleteJobRequest(job_id=lease.job_id, lease_token=lease.lease_token)
    if summary is not None:
        request.output_summary.update(summary)
    return request


def failure(
    lease: Lease,
    *,
    type: str = "ValueError",  # noqa: A002 - as the API names it
    message: str = "bad row",
    non_retryable: bool = False,
    retry_delay: float | None = None,
) -> workers_pb2.FailJobRequest:
    """A request of FailJob."""
    return workers_pb2.FailJobRequest(
        job_id=lease.job_id,
        lease_token=lease.lease_token,
        error=jobs_pb2.JobError(type=type, message=message),
        non_retryable=non_retryable,
        retry_delay=None if retry_delay is None else duration(retry_delay),
    )


def giving_back(lease: Lease, delay: float = 0) -> workers_pb2.ReleaseJobRequest:
    """A request of ReleaseJob."""
    return workers_pb2.ReleaseJobRequest(
        job_id=lease.job_id, lease_token=lease.lease_token, delay=duration(delay)
    )


def item(request: Any) -> workers_pb2.FinishJobsItem:
    """The request as an item of FinishJobs."""
    match request:
        case workers_pb2.CompleteJobRequest():
            return workers_pb2.FinishJobsItem(complete=request)
        case workers_pb2.FailJobRequest():
            return workers_pb2.FinishJobsItem(fail=request)
        case _:
            return workers_pb2.FinishJobsItem(release=request)


def refusal_of(error: Any) -> Refused:
    """Of a call."""
    found: RichError = rich_error(error)
    return Refused(found.reason, found.metadata)


def refusal_in(result: workers_pb2.FinishJobsResult) -> Refused | None:
    """Of an item; None: it was done."""
    if result.WhichOneof("result") == "job":
        return None
    reason = errors_pb2.ErrorReason.Name(result.error.reason).removeprefix("ERROR_REASON_")
    return Refused(reason, dict(result.error.metadata))


def new_service(world: World) -> User:
    """A program that may work on everything."""
    user = world.user(Role.SERVICE)
    for run_type in RunType:
        world.access.grant_run_type(user.soeid, run_type)
    return user


def new_worker(world: World, user: User, name: str = "worker") -> Worker:
    """A worker with a connection of its own, calling as this program."""
    return Worker(world.channel(), make_token(KEY, user.soeid), name)
