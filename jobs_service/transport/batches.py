"""Calls about many jobs: their requests made into what the core is asked, and its results into answers."""

from collections.abc import Iterator, Sequence
from itertools import chain
from uuid import UUID

from jobs.v1 import jobs_pb2
from jobs_service.core.validation import MAX_BATCH, check_uuid, refuse_any
from jobs_service.model.caller import Caller
from jobs_service.model.errors import JobsError, Violation
from jobs_service.model.job import Job, JobView
from jobs_service.model.requests import BatchGetRequest
from jobs_service.transport import errors, requests, responses

_FRAME = 8
"""Bytes that a result takes in its answer besides its own: the field's tag and length."""


def get_request(caller: Caller, request: jobs_pb2.BatchGetJobsRequest) -> BatchGetRequest:
    """Return which jobs are asked for. Raises InvalidRequest."""
    refuse_any(chain(_check_ids(request.job_ids), requests.check_view(request.view)))
    view = requests.view_of(request.view, default=JobView.BASIC)
    return BatchGetRequest(caller, tuple(map(UUID, request.job_ids)), view)


def get_response(request: BatchGetRequest, found: Sequence[Job | JobsError]) -> jobs_pb2.BatchGetJobsResponse:
    """Return the answer of BatchGetJobs: results as long as there is room, of which the first has enough."""
    response = jobs_pb2.BatchGetJobsResponse()
    size = 0
    for job_id, result in zip(request.job_ids, found, strict=False):
        message = _result(job_id, result, request.view)
        size += message.ByteSize() + _FRAME
        if response.results and size > responses.MAX_BYTES - _FRAME:
            break
        response.results.append(message)
    response.not_read = len(request.job_ids) - len(response.results)
    return response


def _result(job_id: UUID, result: Job | JobsError, view: JobView) -> jobs_pb2.JobResult:
    if isinstance(result, JobsError):
        return jobs_pb2.JobResult(job_id=str(job_id), error=errors.item_error(result))
    return jobs_pb2.JobResult(job_id=str(job_id), job=responses.to_message(result, view))


def _check_ids(job_ids: Sequence[str]) -> Iterator[Violation]:
    """What is wrong with the ids of a batch."""
    if not job_ids:
        yield Violation("job_ids", "is required")
    if len(job_ids) > MAX_BATCH:
        yield Violation("job_ids", f"holds more than {MAX_BATCH} ids", MAX_BATCH)
        return
    for index, job_id in enumerate(job_ids):
        yield from check_uuid(f"job_ids[{index}]", job_id)
