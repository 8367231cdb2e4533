"""Calls about many jobs: their requests made into what the core is asked, and its results into answers."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from uuid import UUID

from jobs.v1 import jobs_pb2
from jobs_service.core.batches import check_entries
from jobs_service.core.validation import (
    MAX_BATCH,
    MAX_CANCEL_REASON,
    MAX_VIOLATIONS,
    check_text,
    check_uuid,
    refuse_any,
)
from jobs_service.model.caller import Caller
from jobs_service.model.errors import InvalidRequest, JobsError, PayloadTooLarge, Violation
from jobs_service.model.job import Job, JobView
from jobs_service.model.requests import (
    BatchCancelRequest,
    BatchCancelResult,
    BatchGetRequest,
    CreateRequest,
    CreateResult,
)
from jobs_service.transport import errors, requests, responses

_FRAME = 8
"""Bytes that a result takes in its answer besides its own: the field's tag and length."""
# The rest is for errors, ids and frames of a thousand results.
_ROOM_FOR_JOBS = 2 * 1024 * 1024


def create_requests(
    caller: Caller, request: jobs_pb2.BatchCreateJobsRequest, traceparent: str | None
) -> list[CreateRequest]:
    """Return the jobs asked for. Raises InvalidRequest, PayloadTooLarge, RequestIdConflict."""
    refuse_any(_check_count("requests", len(request.requests)))
    wanted: list[CreateRequest] = []
    wrong: list[InvalidRequest] = []
    for index, entry in enumerate(request.requests):
        try:
            wanted.append(requests.create_request(caller, entry, traceparent, place=index))
        except PayloadTooLarge as refusal:
            # Named alone, or not at all: it has a reason of its own.
            if not wrong:
                raise refusal.in_entry(index) from None
            break
        except InvalidRequest as refusal:
            wrong.append(refusal.in_entry(index))
            if len(wrong) == MAX_VIOLATIONS:
                break
    if wrong:
        raise _together(wrong)
    check_entries(wanted)
    return wanted


def _together(wrong: Sequence[InvalidRequest]) -> InvalidRequest:
    """What is wrong with all these entries, as much of it as is ever told. Metadata: of the first."""
    violations = chain.from_iterable(refusal.violations for refusal in wrong)
    together = InvalidRequest(list(islice(violations, MAX_VIOLATIONS)))
    together.metadata = wrong[0].metadata
    return together


def create_response(results: Sequence[CreateResult]) -> jobs_pb2.BatchCreateJobsResponse:
    """Return the answer of BatchCreateJobs."""
    response = jobs_pb2.BatchCreateJobsResponse()
    for result in results:
        job = responses.created_job(result, JobView.BASIC)
        response.results.add(replayed=result.replayed).job.CopyFrom(job)
    response.shortened = _shortened([result.job for result in response.results])
    return response


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


def check_cancel(request: jobs_pb2.BatchCancelJobsRequest) -> None:
    """Check everything that a BatchCancelJobs shows by itself. Raises InvalidRequest."""
    refuse_any(chain(_check_choice(request), check_text("reason", request.reason, MAX_CANCEL_REASON)))


def _check_choice(request: jobs_pb2.BatchCancelJobsRequest) -> Iterator[Violation]:
    if not request.HasField("filter"):
        yield from _check_ids(request.job_ids)
    elif request.job_ids:
        yield Violation("filter", "must not be given beside job_ids")
    elif not request.filter.ListFields():
        yield Violation("filter", "must have at least one of its fields")
    else:
        yield from requests.check_filter(request.filter)


def cancel_request(
    caller: Caller, request: jobs_pb2.BatchCancelJobsRequest, *, owner_id: int | None
) -> BatchCancelRequest:
    """Return which jobs shall be cancelled; it has been checked. owner_id: as of requests.job_filter."""
    wanted = requests.job_filter(request.filter, owner_id=owner_id) if request.HasField("filter") else None
    return BatchCancelRequest(
        caller=caller,
        job_ids=tuple(map(UUID, request.job_ids)),
        filter=wanted,
        reason=request.reason or None,
        limit=MAX_BATCH,
    )


def cancel_response(result: BatchCancelResult) -> jobs_pb2.BatchCancelJobsResponse:
    """Return the answer of BatchCancelJobs."""
    results = [_result(job_id, each, JobView.BASIC) for job_id, each in result.results]
    shortened = _shortened([each.job for each in results if each.HasField("job")])
    return jobs_pb2.BatchCancelJobsResponse(results=results, more=result.more, shortened=shortened)


def _shortened(jobs: Sequence[jobs_pb2.Job]) -> int:
    """Shorten the last jobs of an answer until all have room; returns how many."""
    size = sum(job.ByteSize() for job in jobs)
    for count, job in enumerate(reversed(jobs)):
        if size <= _ROOM_FOR_JOBS:
            return count
        short = _short(job)
        size -= job.ByteSize() - short.ByteSize()
        job.CopyFrom(short)
    return len(jobs)


def _short(job: jobs_pb2.Job) -> jobs_pb2.Job:
    """What is told of a job for which an answer has no more room; see jobs.proto."""
    short = jobs_pb2.Job(
        job_id=job.job_id,
        run_type=job.run_type,
        status=job.status,
        dataset_id=job.dataset_id,
        version=job.version,
    )
    if job.HasField("create_time"):
        short.create_time.CopyFrom(job.create_time)
    return short


def _result(job_id: UUID, result: Job | JobsError, view: JobView) -> jobs_pb2.JobResult:
    if isinstance(result, JobsError):
        return jobs_pb2.JobResult(job_id=str(job_id), error=errors.item_error(result))
    return jobs_pb2.JobResult(job_id=str(job_id), job=responses.to_message(result, view))


def _check_ids(job_ids: Sequence[str]) -> Iterator[Violation]:
    wrong = list(_check_count("job_ids", len(job_ids)))
    yield from wrong
    if not wrong:
        for index, job_id in enumerate(job_ids):
            yield from check_uuid(f"job_ids[{index}]", job_id)


def _check_count(name: str, count: int) -> Iterator[Violation]:
    if not count:
        yield Violation(name, "is required")
    if count > MAX_BATCH:
        yield Violation(name, f"holds more than {MAX_BATCH}", MAX_BATCH)
