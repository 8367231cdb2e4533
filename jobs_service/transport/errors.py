"""Errors of the core as gRPC statuses: one table, and how its rows are written into the trailers."""

import random
from functools import lru_cache

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from jobs.v1 import errors_pb2
from jobs_service.model import errors as model
from jobs_service.model.errors import InvalidRequest, JobsError

DOMAIN = "jobs.v1"
MAX_DETAILS_BYTES = 4 * 1024
"""Trailers over 8 KiB hide the whole status from some clients; the message stands in them twice."""
MAX_MESSAGE = 500
DETAILS = "grpc-status-details-bin"

Reason = errors_pb2.ErrorReason

STATUS: dict[type[JobsError], tuple[StatusCode, errors_pb2.ErrorReason.ValueType]] = {
    model.CredentialsMissing: (StatusCode.UNAUTHENTICATED, Reason.ERROR_REASON_CREDENTIALS_MISSING),
    model.CredentialsInvalid: (StatusCode.UNAUTHENTICATED, Reason.ERROR_REASON_CREDENTIALS_INVALID),
    model.CallerUnknown: (StatusCode.UNAUTHENTICATED, Reason.ERROR_REASON_CALLER_UNKNOWN),
    model.DatasetPermissionDenied: (
        StatusCode.PERMISSION_DENIED,
        Reason.ERROR_REASON_DATASET_PERMISSION_DENIED,
    ),
    model.JobPermissionDenied: (StatusCode.PERMISSION_DENIED, Reason.ERROR_REASON_JOB_PERMISSION_DENIED),
    model.RoleRequired: (StatusCode.PERMISSION_DENIED, Reason.ERROR_REASON_ROLE_REQUIRED),
    model.JobNotFound: (StatusCode.NOT_FOUND, Reason.ERROR_REASON_JOB_NOT_FOUND),
    model.DependencyNotFound: (StatusCode.NOT_FOUND, Reason.ERROR_REASON_DEPENDENCY_NOT_FOUND),
    model.DatasetNotFound: (StatusCode.NOT_FOUND, Reason.ERROR_REASON_DATASET_NOT_FOUND),
    model.UserNotFound: (StatusCode.NOT_FOUND, Reason.ERROR_REASON_USER_NOT_FOUND),
    model.InvalidRequest: (StatusCode.INVALID_ARGUMENT, Reason.ERROR_REASON_INVALID_FIELD),
    model.InvalidPageToken: (StatusCode.INVALID_ARGUMENT, Reason.ERROR_REASON_INVALID_PAGE_TOKEN),
    model.PayloadTooLarge: (StatusCode.INVALID_ARGUMENT, Reason.ERROR_REASON_PAYLOAD_TOO_LARGE),
    model.RequestIdConflict: (StatusCode.ALREADY_EXISTS, Reason.ERROR_REASON_REQUEST_ID_CONFLICT),
    model.JobNotCancellable: (StatusCode.FAILED_PRECONDITION, Reason.ERROR_REASON_JOB_NOT_CANCELLABLE),
    model.JobNotRetryable: (StatusCode.FAILED_PRECONDITION, Reason.ERROR_REASON_JOB_NOT_RETRYABLE),
    model.DependencyNotSatisfiable: (
        StatusCode.FAILED_PRECONDITION,
        Reason.ERROR_REASON_DEPENDENCY_NOT_SATISFIABLE,
    ),
    model.LeaseLost: (StatusCode.FAILED_PRECONDITION, Reason.ERROR_REASON_LEASE_LOST),
    model.TooManyWaiters: (StatusCode.RESOURCE_EXHAUSTED, Reason.ERROR_REASON_TOO_MANY_WAITERS),
    model.Overloaded: (StatusCode.RESOURCE_EXHAUSTED, Reason.ERROR_REASON_OVERLOADED),
    model.ShuttingDown: (StatusCode.UNAVAILABLE, Reason.ERROR_REASON_SHUTTING_DOWN),
    model.RowLocked: (StatusCode.UNAVAILABLE, Reason.ERROR_REASON_DATABASE_UNAVAILABLE),
    model.DatabaseUnavailable: (StatusCode.UNAVAILABLE, Reason.ERROR_REASON_DATABASE_UNAVAILABLE),
    model.TransactionRolledBack: (StatusCode.UNAVAILABLE, Reason.ERROR_REASON_DATABASE_UNAVAILABLE),
    model.DeadlineExceeded: (StatusCode.DEADLINE_EXCEEDED, Reason.ERROR_REASON_DEADLINE_EXCEEDED),
    model.InternalError: (StatusCode.INTERNAL, Reason.ERROR_REASON_INTERNAL),
}

RETRY_SECONDS: dict[StatusCode, float] = {StatusCode.UNAVAILABLE: 1.0, StatusCode.RESOURCE_EXHAUSTED: 0.5}
"""What RetryInfo asks a client to wait before it tries again, on the average."""
PUSHBACK = "grpc-retry-pushback-ms"
"""The trailer by which gRPC's own retries (gRFC A6) wait as long as RetryInfo says."""


def code_of(error: JobsError) -> StatusCode:
    """Return the status code of an error."""
    return STATUS[type(error)][0]


def reason_of(error: JobsError) -> str:
    """Return the public reason of an error: the enum value's name without its prefix."""
    return Reason.Name(STATUS[type(error)][1]).removeprefix("ERROR_REASON_")


def message_of(error: JobsError) -> str:
    """Return the sentence of an error as a status message."""
    return str(error)[:MAX_MESSAGE]


def retry_milliseconds(error: JobsError) -> int | None:
    """Return how long to wait before trying again, None where that would be no use.

    Spread over half to one and a half of the table's time: whoever was refused together must not come
    back together. In steps of 10 ms.
    """
    seconds = RETRY_SECONDS.get(code_of(error))
    return None if seconds is None else round(seconds * random.uniform(50, 150)) * 10  # noqa: S311 - no secret


def details(error: JobsError) -> list[tuple[str, str | bytes]]:
    """Return the trailers that say more than the status: its rich form, and how long to wait.

    Only Overloaded is pushed back on: nothing was done. After UNAVAILABLE that is not sure, and
    another replica may answer at once.
    """
    wait = retry_milliseconds(error)
    if not isinstance(error, model.Overloaded):
        return [(DETAILS, rich_status(error, wait))]
    data = _overloaded(tuple(error.metadata.items()), wait)
    return [(DETAILS, data), (PUSHBACK, str(wait))]


@lru_cache(maxsize=1000)
def _overloaded(metadata: tuple[tuple[str, str], ...], wait: int | None) -> bytes:
    """What is answered most when there is least time for it."""
    return rich_status(model.Overloaded(**dict(metadata)), wait)


def rich_status(error: JobsError, wait: int | None) -> bytes:
    """Return the google.rpc.Status of an error, as grpc-status-details-bin carries it.

    wait: milliseconds for RetryInfo, None for no RetryInfo.
    """
    code = code_of(error)
    status = status_pb2.Status(code=code.value[0], message=message_of(error))
    _add(
        status,
        error_details_pb2.ErrorInfo(reason=reason_of(error), domain=DOMAIN, metadata=error.metadata),
    )
    if wait is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(wait)
        _add(status, error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, InvalidRequest):
        _add(status, _bad_request(error, MAX_DETAILS_BYTES - status.ByteSize()))
    return bytes(status.SerializeToString())


def item_error(error: JobsError) -> errors_pb2.ItemError:
    """Return what a call about many answers of one item that is refused."""
    return errors_pb2.ItemError(
        code=code_of(error).value[0],
        reason=STATUS[type(error)][1],
        message=message_of(error),
        metadata=error.metadata,
    )


def _bad_request(error: InvalidRequest, room: int) -> error_details_pb2.BadRequest:
    """As many of the violations as there is room for; the first always fits."""
    bad_request = error_details_pb2.BadRequest()
    for violation in error.violations:
        bad_request.field_violations.add(field=violation.field, description=violation.description)
        if bad_request.ByteSize() > room - 100:
            del bad_request.field_violations[-1]
            break
    return bad_request


def _add(status: status_pb2.Status, detail: Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)
