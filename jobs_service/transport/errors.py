"""Errors of the core as gRPC statuses: one table, and how its rows are written into the trailers."""

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
    model.DatasetNotFound: (StatusCode.NOT_FOUND, Reason.ERROR_REASON_DATASET_NOT_FOUND),
    model.UserNotFound: (StatusCode.NOT_FOUND, Reason.ERROR_REASON_USER_NOT_FOUND),
    model.InvalidRequest: (StatusCode.INVALID_ARGUMENT, Reason.ERROR_REASON_INVALID_FIELD),
    model.InvalidPageToken: (StatusCode.INVALID_ARGUMENT, Reason.ERROR_REASON_INVALID_PAGE_TOKEN),
    model.PayloadTooLarge: (StatusCode.INVALID_ARGUMENT, Reason.ERROR_REASON_PAYLOAD_TOO_LARGE),
    model.RequestIdConflict: (StatusCode.ALREADY_EXISTS, Reason.ERROR_REASON_REQUEST_ID_CONFLICT),
    model.JobNotCancellable: (StatusCode.FAILED_PRECONDITION, Reason.ERROR_REASON_JOB_NOT_CANCELLABLE),
    model.Overloaded: (StatusCode.RESOURCE_EXHAUSTED, Reason.ERROR_REASON_OVERLOADED),
    model.ShuttingDown: (StatusCode.UNAVAILABLE, Reason.ERROR_REASON_SHUTTING_DOWN),
    model.RowLocked: (StatusCode.UNAVAILABLE, Reason.ERROR_REASON_DATABASE_UNAVAILABLE),
    model.DatabaseUnavailable: (StatusCode.UNAVAILABLE, Reason.ERROR_REASON_DATABASE_UNAVAILABLE),
    model.TransactionRolledBack: (StatusCode.UNAVAILABLE, Reason.ERROR_REASON_DATABASE_UNAVAILABLE),
    model.DeadlineExceeded: (StatusCode.DEADLINE_EXCEEDED, Reason.ERROR_REASON_DEADLINE_EXCEEDED),
    model.InternalError: (StatusCode.INTERNAL, Reason.ERROR_REASON_INTERNAL),
}

RETRY_SECONDS: dict[StatusCode, float] = {StatusCode.UNAVAILABLE: 1.0, StatusCode.RESOURCE_EXHAUSTED: 0.5}
"""What RetryInfo asks a client to wait before it tries again."""


def code_of(error: JobsError) -> StatusCode:
    """Return the status code of an error."""
    return STATUS[type(error)][0]


def reason_of(error: JobsError) -> str:
    """Return the public reason of an error: the enum value's name without its prefix."""
    return Reason.Name(STATUS[type(error)][1]).removeprefix("ERROR_REASON_")


def message_of(error: JobsError) -> str:
    """Return the sentence of an error as a status message."""
    return str(error)[:MAX_MESSAGE]


def rich_status(error: JobsError) -> bytes:
    """Return the google.rpc.Status of an error, as grpc-status-details-bin carries it."""
    code = code_of(error)
    status = status_pb2.Status(code=code.value[0], message=message_of(error))
    _add(
        status,
        error_details_pb2.ErrorInfo(reason=reason_of(error), domain=DOMAIN, metadata=error.metadata),
    )
    if code in RETRY_SECONDS:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(RETRY_SECONDS[code] * 1000))
        _add(status, error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, InvalidRequest):
        _add(status, _bad_request(error, MAX_DETAILS_BYTES - status.ByteSize()))
    return bytes(status.SerializeToString())


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
