"""How an attempt ended: what handlers return and raise, and what the service is told of it."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from google.protobuf import struct_pb2

from jobs.v1 import jobs_pb2, workers_pb2
from jobs_service.client.structs import to_duration, to_struct
from jobs_service.worker.task import Cancelled, StopReason, cut

MAX_TYPE_BYTES = 100
MAX_MESSAGE_BYTES = 1000
INVALID_RESULT = "InvalidResult"
"""The error type of a handler that returned what can't be stored."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a handler may return instead of a plain summary.

    summary: output_summary, as JSON at most 1 MiB. output_commit_id: the commit that the job made.
    """

    summary: Mapping[str, Any] | None = None
    output_commit_id: str = ""


class UserError(Exception):
    """The job can't succeed as it was asked for, such as a file that is not there.

    It is FAILED, without further attempts.

    type: error.type of the job; the name of the class unless given.
    """

    def __init__(self, message: str, *, type: str = "") -> None:  # noqa: A002 - as the API names it
        super().__init__(message)
        self.type = type


class Retry(Exception):
    """The attempt failed, and another one may succeed.

    delay: how long to wait before it, seconds; as the job's retry_policy says unless given.
    """

    def __init__(self, message: str, *, delay: float | None = None, type: str = "") -> None:  # noqa: A002
        super().__init__(message)
        self.delay = delay
        self.type = type


class Release(Exception):
    """Give the job back undone, the attempt not spent. delay: seconds before anybody may take it again."""

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__(f"given back, for {delay} s")
        self.delay = delay


@dataclass(frozen=True, slots=True)
class Completed:
    """The job is done."""

    summary: struct_pb2.Struct | None = None
    output_commit_id: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed. retry_delay: seconds; None: as the job's retry_policy says."""

    type: str
    message: str
    non_retryable: bool = False
    retry_delay: float | None = None


@dataclass(frozen=True, slots=True)
class Released:
    """The job is given back. delay: seconds."""

    delay: float = 0.0


Outcome = Completed | Failed | Released


def outcome_of_value(value: object) -> Outcome:
    """Return what it means that a handler returned this: None, a summary, or a Result."""
    result = value if isinstance(value, Result) else Result(summary=value)  # type: ignore[arg-type]  # checked below
    if result.summary is None:
        return Completed(output_commit_id=result.output_commit_id)
    if not isinstance(result.summary, Mapping):
        return Failed(
            INVALID_RESULT, f"a handler returns a mapping, a Result or None, not {type(value).__name__}", True
        )
    summary = struct_pb2.Struct()
    try:
        to_struct(result.summary, summary)
    except (TypeError, ValueError) as error:
        return Failed(INVALID_RESULT, f"the summary can't be stored: {error}", True)
    return Completed(summary, result.output_commit_id)


def outcome_of_error(
    error: BaseException, stop: StopReason | None, user_errors: tuple[type[BaseException], ...] = ()
) -> Outcome:
    """Return what it means that a handler raised this. user_errors: exceptions that count as UserError."""
    if isinstance(error, Cancelled | asyncio.CancelledError):
        if stop is StopReason.TIMED_OUT:
            return Failed("TimedOut", StopReason.TIMED_OUT.value)
        # Without a reason to stop it is a fault of the handler's own.
        if stop is not None:
            return Released()
    if isinstance(error, Release):
        return Released(error.delay)
    if isinstance(error, Retry):
        return Failed(error.type or type(error).__name__, str(error), retry_delay=error.delay)
    if isinstance(error, UserError):
        return Failed(error.type or type(error).__name__, str(error), non_retryable=True)
    return Failed(type(error).__name__, str(error), non_retryable=isinstance(error, user_errors))


def item_of(job_id: str, lease_token: str, outcome: Outcome) -> workers_pb2.FinishJobsItem:
    """Return what tells the service."""
    match outcome:
        case Completed():
            complete = workers_pb2.CompleteJobRequest(
                job_id=job_id,
                lease_token=lease_token,
                output_summary=outcome.summary,
                output_commit_id=outcome.output_commit_id,
            )
            return workers_pb2.FinishJobsItem(complete=complete)
        case Failed():
            error = jobs_pb2.JobError(
                type=cut(outcome.type, MAX_TYPE_BYTES), message=cut(outcome.message, MAX_MESSAGE_BYTES)
            )
            fail = workers_pb2.FailJobRequest(
                job_id=job_id,
                lease_token=lease_token,
                error=error,
                non_retryable=outcome.non_retryable,
                retry_delay=_duration(outcome.retry_delay),
            )
            return workers_pb2.FinishJobsItem(fail=fail)
        case Released():
            release = workers_pb2.ReleaseJobRequest(
                job_id=job_id, lease_token=lease_token, delay=_duration(outcome.delay)
            )
            return workers_pb2.FinishJobsItem(release=release)


def _duration(seconds: float | None) -> Any:
    return None if seconds is None else to_duration(timedelta(seconds=seconds))
