"""What workers are answered, as it goes over the wire."""

from collections.abc import Sequence
from typing import Any

from jobs.v1 import workers_pb2
from jobs_service.model.errors import JobsError
from jobs_service.model.job import JobView
from jobs_service.model.work import (
    Claim,
    ClaimResult,
    FinishRequest,
    FinishResult,
    HeartbeatRequest,
    HeartbeatResult,
    LeaseState,
)
from jobs_service.transport import responses
from jobs_service.transport.errors import item_error

_FRAME = 8
"""Bytes that an item takes in its answer besides its own: the field's tag and length."""
_ROOM = responses.MAX_BYTES - 1024
_LONG_FIELDS = (
    "dataset_name",
    "description",
    "external_id",
    "progress",
    "error_message",
    "cancel_reason",
    "waiting_on_job_ids",
)


def claim_response(result: ClaimResult) -> tuple[workers_pb2.ClaimJobsResponse, list[Claim]]:
    """Return the answer of ClaimJobs, and the claims that there is no room for in it.

    The first one always has room.
    """
    response = workers_pb2.ClaimJobsResponse(
        more=result.more,
        run_types_not_granted=sorted(responses.run_type_number(run_type) for run_type in result.not_granted),
    )
    size = 0
    for place, claim in enumerate(result.claims):
        message = _claim(claim)
        size += message.ByteSize() + _FRAME
        if place and size > _ROOM:
            response.more = True
            return response, result.claims[place:]
        response.claims.append(message)
    return response, []


def _claim(claim: Claim) -> workers_pb2.Claim:
    message = workers_pb2.Claim(
        job=responses.to_message(claim.job, JobView.FULL),
        lease_token=claim.lease_token.hex,
        attempt=claim.attempt,
        traceparent=claim.traceparent or "",
    )
    message.lease_expire_time.FromDatetime(claim.lease_expire_time)
    # The claim is the job's last change, by the same clock.
    message.lease_duration.FromTimedelta(claim.lease_expire_time - claim.job.update_time)
    return message


def heartbeat_response(
    request: HeartbeatRequest, results: Sequence[HeartbeatResult]
) -> workers_pb2.HeartbeatJobsResponse:
    """Return the answer of HeartbeatJobs."""
    response = workers_pb2.HeartbeatJobsResponse()
    for lease, result in zip(request.leases, results, strict=True):
        message = response.results.add(job_id=str(lease.job_id))
        if result.state is LeaseState.CANCEL_REQUESTED:
            message.cancel_requested = True
        elif result.lease_expire_time is None:
            message.lost = True
        else:
            message.lease_expire_time.FromDatetime(result.lease_expire_time)
    return response


def complete_response(result: FinishResult) -> workers_pb2.CompleteJobResponse:
    """Return the answer of CompleteJob."""
    return workers_pb2.CompleteJobResponse(job=responses.to_message(result.job, JobView.FULL))


def fail_response(result: FinishResult) -> workers_pb2.FailJobResponse:
    """Return the answer of FailJob."""
    job = responses.to_message(result.job, JobView.FULL)
    return workers_pb2.FailJobResponse(job=job, will_retry=result.will_retry)


def release_response(result: FinishResult) -> workers_pb2.ReleaseJobResponse:
    """Return the answer of ReleaseJob."""
    return workers_pb2.ReleaseJobResponse(job=responses.to_message(result.job, JobView.FULL))


def finish_response(
    finishes: Sequence[FinishRequest], results: Sequence[FinishResult | JobsError]
) -> workers_pb2.FinishJobsResponse:
    """Return the answer of FinishJobs: a result for each item, in their order."""
    response, size = workers_pb2.FinishJobsResponse(), 0
    for finish, result in zip(finishes, results, strict=True):
        message = _finished(finish, result)
        size += message.ByteSize() + _FRAME
        if size > responses.MAX_BYTES // 2:
            # The rest in short: a thousand of these have room in the other half.
            _shorten(message)
        response.results.append(message)
    return response


def _shorten(message: workers_pb2.FinishJobsResult) -> None:
    job: Any = message.job
    for name in _LONG_FIELDS if message.HasField("job") else ():
        job.ClearField(name)


def _finished(finish: FinishRequest, result: FinishResult | JobsError) -> workers_pb2.FinishJobsResult:
    job_id = str(finish.job_id)
    if isinstance(result, JobsError):
        return workers_pb2.FinishJobsResult(job_id=job_id, error=item_error(result))
    job = responses.to_message(result.job, JobView.BASIC)
    return workers_pb2.FinishJobsResult(job_id=job_id, job=job, will_retry=result.will_retry)
