"""A client as another team would write it: the stubs, a token, and the rich error decoded."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from jobs.v1 import access_pb2, access_pb2_grpc, jobs_pb2, jobs_pb2_grpc, workers_pb2, workers_pb2_grpc

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True, slots=True)
class RichError:
    """What a refused call answered."""

    code: str
    message: str
    reason: str
    metadata: dict[str, str]
    violations: dict[str, str]
    retry_delay: timedelta | None


class Client:
    """Calls the service as one caller. Every method has a deadline, so that no test hangs."""

    def __init__(self, channel: grpc.Channel, token: str | None, *, on_behalf_of: str | None = None) -> None:
        self.stub = jobs_pb2_grpc.JobsServiceStub(channel)
        self.access_stub = access_pb2_grpc.AccessServiceStub(channel)
        headers = {"authorization": f"Bearer {token}" if token else None, "x-on-behalf-of": on_behalf_of}
        self.metadata: Metadata = tuple((key, value) for key, value in headers.items() if value is not None)

    def call(self, rpc: str, request: Any, *, metadata: Metadata = (), timeout: float = 30) -> Any:
        """Call an RPC by its name."""
        return getattr(self.stub, rpc)(request, metadata=self.metadata + metadata, timeout=timeout)

    def access(self, rpc: str, **fields: Any) -> Any:
        """An RPC of AccessService, by its name and the fields of its request."""
        request = getattr(access_pb2, f"{rpc}Request")(**fields)
        return getattr(self.access_stub, rpc)(request, metadata=self.metadata, timeout=30)

    def create(self, **fields: Any) -> jobs_pb2.CreateJobResponse:
        """CreateJob; an import on data set 1 unless the fields say otherwise."""
        defaults: dict[str, Any] = {
            "dataset_id": 1,
            "run_type": jobs_pb2.RUN_TYPE_IMPORT,
            "run_parameters": {"file_path": "landing/a.csv"},
        }
        response: jobs_pb2.CreateJobResponse = self.call(
            "CreateJob", jobs_pb2.CreateJobRequest(**(defaults | fields))
        )
        return response

    def get(self, job_id: str, view: Any = jobs_pb2.JOB_VIEW_UNSPECIFIED) -> jobs_pb2.Job:
        """GetJob."""
        response: jobs_pb2.GetJobResponse = self.call(
            "GetJob", jobs_pb2.GetJobRequest(job_id=job_id, view=view)
        )
        return response.job

    def batch_create(self, entries: Sequence[dict[str, Any]]) -> jobs_pb2.BatchCreateJobsResponse:
        """BatchCreateJobs; each entry is an import unless its fields say otherwise."""
        defaults: dict[str, Any] = {
            "run_type": jobs_pb2.RUN_TYPE_IMPORT,
            "run_parameters": {"file_path": "landing/a.csv"},
        }
        requests = [jobs_pb2.CreateJobRequest(**(defaults | fields)) for fields in entries]
        response: jobs_pb2.BatchCreateJobsResponse = self.call(
            "BatchCreateJobs", jobs_pb2.BatchCreateJobsRequest(requests=requests)
        )
        return response

    def batch_cancel(self, job_ids: Sequence[str] = (), **fields: Any) -> jobs_pb2.BatchCancelJobsResponse:
        """BatchCancelJobs; filter is a dict of JobFilter's fields."""
        response: jobs_pb2.BatchCancelJobsResponse = self.call(
            "BatchCancelJobs", jobs_pb2.BatchCancelJobsRequest(job_ids=job_ids, **fields)
        )
        return response

    def batch_get(self, job_ids: Sequence[str], view: Any = 0) -> jobs_pb2.BatchGetJobsResponse:
        """BatchGetJobs."""
        response: jobs_pb2.BatchGetJobsResponse = self.call(
            "BatchGetJobs", jobs_pb2.BatchGetJobsRequest(job_ids=job_ids, view=view)
        )
        return response

    def status(self, job_id: str) -> jobs_pb2.GetJobStatusResponse:
        """GetJobStatus."""
        response: jobs_pb2.GetJobStatusResponse = self.call(
            "GetJobStatus", jobs_pb2.GetJobStatusRequest(job_id=job_id)
        )
        return response

    def cancel(self, job_id: str, reason: str = "") -> jobs_pb2.Job:
        """CancelJob."""
        response: jobs_pb2.CancelJobResponse = self.call(
            "CancelJob", jobs_pb2.CancelJobRequest(job_id=job_id, reason=reason)
        )
        return response.job

    def list(self, **fields: Any) -> jobs_pb2.ListJobsResponse:
        """ListJobs, one page; filter is a dict of JobFilter's fields."""
        response: jobs_pb2.ListJobsResponse = self.call("ListJobs", jobs_pb2.ListJobsRequest(**fields))
        return response

    def pages(self, **fields: Any) -> Iterator[jobs_pb2.ListJobsResponse]:
        """ListJobs, page after page to the end."""
        page = self.list(**fields)
        yield page
        while page.next_page_token:
            page = self.list(**fields, page_token=page.next_page_token)
            yield page


Lease = workers_pb2.Claim | workers_pb2.Heartbeat
"""What names a lease: a claim, or any job id and token."""


def lease_of(lease: Lease) -> dict[str, Any]:
    """The fields by which a call of a worker names its lease."""
    job_id = lease.job.job_id if isinstance(lease, workers_pb2.Claim) else lease.job_id
    return {"job_id": job_id, "lease_token": lease.lease_token}


class WorkerClient(Client):
    """Calls WorkersService too, as one worker. Durations are timedeltas."""

    def __init__(self, channel: grpc.Channel, token: str | None, *, on_behalf_of: str | None = None) -> None:
        super().__init__(channel, token, on_behalf_of=on_behalf_of)
        self.workers = workers_pb2_grpc.WorkersServiceStub(channel)

    def work(self, rpc: str, request: Any, *, metadata: Metadata = (), timeout: float = 30) -> Any:
        """Call an RPC of WorkersService by its name."""
        return getattr(self.workers, rpc)(request, metadata=self.metadata + metadata, timeout=timeout)

    def claim(self, *, timeout: float = 30, **fields: Any) -> workers_pb2.ClaimJobsResponse:
        """ClaimJobs; one import unless the fields say otherwise."""
        defaults: dict[str, Any] = {"worker_id": "worker-1", "run_types": [jobs_pb2.RUN_TYPE_IMPORT]}
        response: workers_pb2.ClaimJobsResponse = self.work(
            "ClaimJobs", workers_pb2.ClaimJobsRequest(**(defaults | fields)), timeout=timeout
        )
        return response

    def claim_one(self, **fields: Any) -> workers_pb2.Claim:
        """The one job that ClaimJobs gives."""
        (claim,) = self.claim(**fields).claims
        return claim

    def heartbeat(
        self,
        *leases: Lease,
        progress: Any = None,
        timeout: float = 30,
        **fields: Any,
    ) -> list[workers_pb2.HeartbeatResult]:
        """HeartbeatJobs, the same progress for each lease."""
        beats = [workers_pb2.Heartbeat(**lease_of(lease), progress=progress) for lease in leases]
        response: workers_pb2.HeartbeatJobsResponse = self.work(
            "HeartbeatJobs", workers_pb2.HeartbeatJobsRequest(leases=beats, **fields), timeout=timeout
        )
        return list(response.results)

    def complete(self, lease: Lease, **fields: Any) -> jobs_pb2.Job:
        """CompleteJob."""
        response: workers_pb2.CompleteJobResponse = self.work(
            "CompleteJob", workers_pb2.CompleteJobRequest(**lease_of(lease), **fields)
        )
        return response.job

    def fail(self, lease: Lease, **fields: Any) -> workers_pb2.FailJobResponse:
        """FailJob; a ValueError unless the fields say otherwise."""
        defaults: dict[str, Any] = {"error": {"type": "ValueError", "message": "the file is empty"}}
        response: workers_pb2.FailJobResponse = self.work(
            "FailJob", workers_pb2.FailJobRequest(**lease_of(lease), **(defaults | fields))
        )
        return response

    def release(self, lease: Lease, **fields: Any) -> jobs_pb2.Job:
        """ReleaseJob."""
        response: workers_pb2.ReleaseJobResponse = self.work(
            "ReleaseJob", workers_pb2.ReleaseJobRequest(**lease_of(lease), **fields)
        )
        return response.job

    def finish(self, *items: Any) -> list[workers_pb2.FinishJobsResult]:
        """FinishJobs; an item is {"complete": {**lease_of(claim), ...}}, or fail, or release."""
        response: workers_pb2.FinishJobsResponse = self.work(
            "FinishJobs", workers_pb2.FinishJobsRequest(items=items)
        )
        return list(response.results)


def rich_error(error: Any) -> RichError:
    """Decode what a refused call answered; everything that contract says of every error is checked."""
    status = rpc_status.from_call(error)
    assert status is not None, f"no details: {error!r}"
    assert status.message == error.details()
    return _decoded(error.code().name, status)


def _decoded(code: str, status: status_pb2.Status) -> RichError:
    infos, violations, delay = [], {}, None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            infos.append(info)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad_request = error_details_pb2.BadRequest()
            detail.Unpack(bad_request)
            violations = {item.field: item.description for item in bad_request.field_violations}
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            delay = retry.retry_delay.ToTimedelta()
    assert len(infos) == 1, "exactly one ErrorInfo"
    assert infos[0].domain == "jobs.v1"
    assert (code == "INVALID_ARGUMENT") == bool(violations)
    assert (code in {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}) == (delay is not None)
    assert status.ByteSize() < 4096
    return RichError(code, status.message, infos[0].reason, dict(infos[0].metadata), violations, delay)


@dataclass
class Refusal:
    """Filled when the block of `refused` has ended."""

    error: RichError | None = None

    @property
    def it(self) -> RichError:
        """The error."""
        assert self.error is not None
        return self.error


@contextmanager
def refused(code: str, reason: str) -> Iterator[Refusal]:
    """Expect the block to be refused with this status code and reason."""
    refusal = Refusal()
    with pytest.raises(grpc.RpcError) as caught:
        yield refusal
    refusal.error = rich_error(caught.value)
    assert (refusal.error.code, refusal.error.reason) == (code, reason), refusal.error
