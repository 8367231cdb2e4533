"""When, how often and after what a job shall run, as it comes over the wire."""

from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from jobs.v1 import jobs_pb2
from jobs_service.core.scheduling import CANCEL, KEEP_WAITING, RetryDraft, ScheduleDraft

MALFORMED = timedelta.max
"""Of a Duration that is none: longer than anything may be."""

ON_DEPENDENCY_FAILURE: dict[int, str] = {
    jobs_pb2.ON_DEPENDENCY_FAILURE_UNSPECIFIED: "",
    jobs_pb2.ON_DEPENDENCY_FAILURE_CANCEL: CANCEL,
    jobs_pb2.ON_DEPENDENCY_FAILURE_KEEP_WAITING: KEEP_WAITING,
}


def schedule_draft(request: jobs_pb2.CreateJobRequest, place: int | None) -> ScheduleDraft:
    """Return the fields that say when a job runs. place: of the request in a batch, None for one alone."""
    return ScheduleDraft(
        max_attempts=request.max_attempts if request.HasField("max_attempts") else None,
        start_delay=span_of(request, "start_delay"),
        run_timeout=span_of(request, "run_timeout"),
        retry=_retry_draft(request.retry_policy) if request.HasField("retry_policy") else None,
        depends_on=tuple(request.depends_on_job_ids),
        depends_on_indexes=tuple(request.depends_on_indexes),
        on_dependency_failure=ON_DEPENDENCY_FAILURE.get(request.on_dependency_failure),
        place=place,
    )


def _retry_draft(policy: jobs_pb2.RetryPolicy) -> RetryDraft:
    return RetryDraft(
        initial=span_of(policy, "initial_backoff"),
        longest=span_of(policy, "max_backoff"),
        multiplier=policy.backoff_multiplier if policy.HasField("backoff_multiplier") else None,
    )


def span_of(message: Message, field: str) -> timedelta | None:
    """Return the Duration in this field, None where it is not set, MALFORMED where it is none.

    Rounded up to a microsecond: never shorter than was asked for.
    """
    if not message.HasField(field):
        return None
    duration: Duration = getattr(message, field)
    seconds, nanos = duration.seconds, duration.nanos
    if abs(nanos) > 999_999_999 or seconds * nanos < 0:
        return MALFORMED
    try:
        return timedelta(seconds=seconds, microseconds=-(-nanos // 1000))
    except OverflowError:
        return MALFORMED
