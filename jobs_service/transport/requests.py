"""Requests as they come over the wire, made into what the core is asked."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import chain
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from jobs.v1 import jobs_pb2
from jobs_service.core import run_parameters
from jobs_service.core.validation import (
    DEFAULT_PAGE_SIZE,
    MAX_CANCEL_REASON,
    MAX_EXTERNAL_ID,
    MAX_FILTER_WORDS,
    MAX_PAGE_SIZE,
    MAX_SKIP,
    JobDraft,
    check_id,
    check_text,
    check_uuid,
    checked_job,
    parameters_too_large,
    refuse_any,
)
from jobs_service.model.caller import Caller, normalized_soeid
from jobs_service.model.errors import PayloadTooLarge, Violation
from jobs_service.model.job import JobStatus, JobView, RunType
from jobs_service.model.paths import field_path
from jobs_service.model.requests import CancelRequest, CreateRequest, GetRequest, JobFilter, RetryRequest
from jobs_service.transport import structs
from jobs_service.transport.schedules import schedule_draft

PROTOBUF_PER_JSON = 5.5
"""The bytes that protobuf needs for one byte of compact JSON, at most: a list of digits, 11 for 2."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

STATUSES: dict[int, JobStatus] = {
    jobs_pb2.JobStatus.Value(f"JOB_STATUS_{status}"): status for status in JobStatus
}
RUN_TYPES: dict[int, RunType] = {
    jobs_pb2.RunType.Value(f"RUN_TYPE_{run_type}"): run_type for run_type in RunType
}
VIEWS: dict[int, JobView] = {jobs_pb2.JOB_VIEW_BASIC: JobView.BASIC, jobs_pb2.JOB_VIEW_FULL: JobView.FULL}


def create_request(
    caller: Caller,
    request: jobs_pb2.CreateJobRequest,
    traceparent: str | None = None,
    *,
    place: int | None = None,
) -> CreateRequest:
    """Return the job asked for, with the trace context to keep. Raises InvalidRequest, PayloadTooLarge.

    place: of the request in a batch, None for one that stands alone.
    """
    if request.run_parameters.ByteSize() > run_parameters.MAX_BYTES * PROTOBUF_PER_JSON:
        # Too large whatever is in it: not worth a walk.
        raise PayloadTooLarge([parameters_too_large()])
    violations: list[Violation] = []
    parameters = None
    if request.HasField("run_parameters"):
        try:
            parameters = structs.to_json(request.run_parameters)
        except structs.NoValue as missing:
            path = field_path(run_parameters.ROOT, missing.path)
            violations.append(Violation(path, "is a Value without a kind"))
    draft = JobDraft(
        dataset_id=request.dataset_id,
        run_type=RUN_TYPES.get(request.run_type),
        run_parameters=parameters,
        source_commit_id=request.source_commit_id,
        description=request.description,
        external_id=request.external_id,
        priority=request.priority,
        request_id=request.request_id,
        validate_only=request.validate_only,
        schedule=schedule_draft(request, place),
        violations=violations,
    )
    # Of an on-behalf call the owner's id is not ours to tell before its sender's role is known.
    owner_id = caller.user_id if caller.on_behalf_of is None else None
    job = checked_job(draft, owner_id=owner_id)
    return CreateRequest(caller, job, traceparent, tuple(request.depends_on_indexes))


def get_request(caller: Caller, job_id: str) -> GetRequest:
    """Return which job is asked for. Raises InvalidRequest."""
    refuse_any(check_uuid("job_id", job_id))
    return GetRequest(caller, UUID(job_id))


def get_request_and_view(caller: Caller, request: jobs_pb2.GetJobRequest) -> tuple[GetRequest, JobView]:
    """Return which job is asked for and how much of it. Raises InvalidRequest."""
    refuse_any(chain(check_uuid("job_id", request.job_id), check_view(request.view)))
    return GetRequest(caller, UUID(request.job_id)), view_of(request.view, default=JobView.FULL)


def view_of(view: int, *, default: JobView) -> JobView:
    """Return the view asked for; it has been checked."""
    return VIEWS.get(view, default)


def cancel_request(caller: Caller, request: jobs_pb2.CancelJobRequest) -> CancelRequest:
    """Return which job shall be cancelled. Raises InvalidRequest."""
    refuse_any(
        chain(
            check_uuid("job_id", request.job_id),
            check_text("reason", request.reason, MAX_CANCEL_REASON),
        )
    )
    return CancelRequest(caller, UUID(request.job_id), request.reason or None)


def retry_request(caller: Caller, request: jobs_pb2.RetryJobRequest) -> RetryRequest:
    """Return which job shall be tried again. Raises InvalidRequest."""
    refuse_any(check_uuid("job_id", request.job_id))
    return RetryRequest(caller, UUID(request.job_id))


def check_list(request: jobs_pb2.ListJobsRequest) -> None:
    """Check everything that a ListJobs shows by itself, but its page token. Raises InvalidRequest."""
    refuse_any(chain(check_filter(request.filter), _check_paging(request), check_view(request.view)))


def check_filter(wanted: jobs_pb2.JobFilter) -> Iterator[Violation]:
    """Yield what is wrong with a filter."""
    yield from _check_owner(wanted)
    if wanted.HasField("dataset_id"):
        yield from check_id("filter.dataset_id", wanted.dataset_id)
    yield from _check_words("filter.statuses", wanted.statuses, STATUSES)
    yield from _check_words("filter.run_types", wanted.run_types, RUN_TYPES)
    yield from _check_external_id(wanted)
    yield from _check_times(wanted)


def _check_owner(wanted: jobs_pb2.JobFilter) -> Iterator[Violation]:
    if wanted.HasField("user_id"):
        yield from check_id("filter.user_id", wanted.user_id)
    if wanted.HasField("user_soeid") and normalized_soeid(wanted.user_soeid) is None:
        yield Violation("filter.user_soeid", "must be a SOEID: two letters and five digits")


def _check_words(name: str, values: Iterable[int], known: Mapping[int, object]) -> Iterator[Violation]:
    given = list(values)
    if len(given) > MAX_FILTER_WORDS:
        yield Violation(name, f"holds more than {MAX_FILTER_WORDS} values", MAX_FILTER_WORDS)
        return
    for index, value in enumerate(given):
        if value not in known:
            yield Violation(f"{name}[{index}]", "must be one of the known values")


def _check_external_id(wanted: jobs_pb2.JobFilter) -> Iterator[Violation]:
    if wanted.HasField("external_id"):
        if not wanted.external_id:
            yield Violation("filter.external_id", "must not be empty when given")
        yield from check_text("filter.external_id", wanted.external_id, MAX_EXTERNAL_ID)


def _check_times(wanted: jobs_pb2.JobFilter) -> Iterator[Violation]:
    bounds: list[datetime] = []
    for name in ("create_time_from", "create_time_to"):
        if wanted.HasField(name):
            try:
                bounds.append(_moment(getattr(wanted, name)))
            except (OverflowError, ValueError):
                yield Violation(f"filter.{name}", "is not a time between the years 1 and 9999")
    if len(bounds) == 2 and bounds[0] > bounds[1]:
        yield Violation("filter.create_time_from", "is later than create_time_to")


def _check_paging(request: jobs_pb2.ListJobsRequest) -> Iterator[Violation]:
    if request.page_size < 0:
        yield Violation("page_size", "must not be negative")
    if not 0 <= request.skip <= MAX_SKIP:
        yield Violation("skip", f"must be between 0 and {MAX_SKIP}", MAX_SKIP)


def check_view(view: int) -> Iterator[Violation]:
    """Yield what is wrong with a view."""
    if view != jobs_pb2.JOB_VIEW_UNSPECIFIED and view not in VIEWS:
        yield Violation("view", "must be one of the known values")


def page_size(request: jobs_pb2.ListJobsRequest) -> int:
    """Return how many jobs a page shall have: 0 means the default, too many mean the most."""
    return min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def job_filter(wanted: jobs_pb2.JobFilter, *, owner_id: int | None) -> JobFilter:
    """Return a checked filter. owner_id: of the owner that it names, None where nobody is it."""
    return JobFilter(
        owner_id=owner_id,
        owner_soeid=wanted.user_soeid.lower() if wanted.HasField("user_soeid") else None,
        dataset_id=wanted.dataset_id if wanted.HasField("dataset_id") else None,
        statuses=frozenset(STATUSES[status] for status in wanted.statuses),
        run_types=frozenset(RUN_TYPES[run_type] for run_type in wanted.run_types),
        external_id=wanted.external_id if wanted.HasField("external_id") else None,
        create_time_from=_moment(wanted.create_time_from) if wanted.HasField("create_time_from") else None,
        create_time_to=_moment(wanted.create_time_to) if wanted.HasField("create_time_to") else None,
    )


def _moment(timestamp: Timestamp) -> datetime:
    """Rounded up to a microsecond: no job's time lies between that and the nanoseconds given."""
    if not 0 <= timestamp.nanos <= 999_999_999:
        raise ValueError("nanos")
    second = _EPOCH + timedelta(seconds=timestamp.seconds)
    # The last microsecond of all has none above it.
    return (
        min(datetime.max.replace(tzinfo=UTC) - second, timedelta(microseconds=-(-timestamp.nanos // 1000)))
        + second
    )
