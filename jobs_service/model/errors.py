"""The errors of the service, one tree for every layer.

    JobsError
    ├── CredentialsMissing, CredentialsInvalid, CallerUnknown      who calls is not known
    ├── DatasetPermissionDenied, JobPermissionDenied, RoleRequired  known, but may not
    ├── JobNotFound, DatasetNotFound, UserNotFound                  not there, or not visible
    ├── DependencyNotFound                                          the same of a job to wait for
    ├── InvalidRequest                                              the message alone shows it
    │   ├── InvalidPageToken
    │   └── PayloadTooLarge
    ├── RequestIdConflict                                           the id is taken by another request
    ├── JobNotCancellable, JobNotRetryable                          the state forbids it
    ├── DependencyNotSatisfiable                                    what it waits for will never come
    ├── LeaseLost                                                   the job is another's by now, or nobody's
    ├── TooManyWaiters                                              too many wait for something to happen
    ├── Overloaded                                                  too much at once
    ├── ShuttingDown                                                this replica is going away
    ├── RowLocked                                                   another transaction holds the row
    ├── DatabaseUnavailable                                         what happened may be unknown
    │   └── TransactionRolledBack                                   surely nothing was written: rerun
    ├── DeadlineExceeded                                            the caller's time is up
    └── InternalError                                               a fault of ours

Each class has the sentence that people read; every value in it is metadata too, by construction.
transport.errors gives each its gRPC status and public reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from jobs_service.model.paths import nested_path


class JobsError(Exception):
    """A refusal that the caller gets to see: a sentence, and its values as metadata.

    detail: what the log alone is told besides.
    """

    sentence: ClassVar[str] = ""
    detail: str = ""

    def __init__(self, **metadata: object) -> None:
        self.metadata = {key: str(value) for key, value in metadata.items() if value is not None}
        super().__init__(self.sentence.format_map(self.metadata))

    def in_entry(self, index: int) -> Self:
        """Say which entry of a batch is refused. Metadata: index, too."""
        self.metadata["index"] = str(index)
        self.args = (f"requests[{index}]: {self}",)
        return self


class CredentialsMissing(JobsError):
    """No bearer token came with the call."""

    sentence = "The call carries no credentials: send 'authorization: Bearer <JWT>'."


class CredentialsInvalid(JobsError):
    """The token or certificate is malformed, expired, badly signed, or meant for somebody else.

    What exactly is wrong is its detail: it would help nobody but a forger.
    """

    sentence = "The credentials are not valid."

    def __init__(self, detail: str) -> None:
        super().__init__()
        self.detail = detail


class CallerUnknown(JobsError):
    """The token is good, but nobody here has its SOEID. Metadata: user_soeid."""

    sentence = "The caller {user_soeid} is not known here."

    def __init__(self, *, user_soeid: str) -> None:
        super().__init__(user_soeid=user_soeid)
        self.detail = f"nobody has the SOEID {user_soeid}"


class DatasetPermissionDenied(JobsError):
    """Metadata: dataset_id, required_permission."""

    sentence = "This needs the permission '{required_permission}' on data set {dataset_id}."


class JobPermissionDenied(JobsError):
    """The caller sees the job, but may not do this to it. Metadata: job_id, required_permission."""

    sentence = "This needs the permission '{required_permission}' on the data set of job {job_id}."


class RoleRequired(JobsError):
    """Metadata: required_role (of the caller, or of whom it calls for), run_type (if not granted)."""

    def __init__(self, *, required_role: str, run_type: str | None = None) -> None:
        super().__init__(required_role=required_role, run_type=run_type)
        granted = "" if run_type is None else f", with the run type {run_type} granted"
        self.args = (f"This needs the role '{required_role}'{granted}.",)


class JobNotFound(JobsError):
    """Not there, or not visible: the caller can't tell which. Metadata: job_id."""

    sentence = "There is no job {job_id}, or it is not visible to the caller."


class DependencyNotFound(JobsError):
    """Not there, or not visible: the caller can't tell which. Metadata: job_id (of the dependency)."""

    sentence = "There is no job {job_id} to wait for, or it is not visible to the caller."


class DatasetNotFound(JobsError):
    """Shown to admins alone. Metadata: dataset_id."""

    sentence = "There is no data set {dataset_id}."


class UserNotFound(JobsError):
    """Metadata: user_id or user_soeid."""

    def __init__(self, *, user_id: int | None = None, user_soeid: str | None = None) -> None:
        super().__init__(user_id=user_id, user_soeid=user_soeid)
        self.args = (f"There is no user {user_soeid if user_id is None else user_id}.",)


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong with one field: its full path, a sentence without the value, the limit if any."""

    field: str
    description: str
    limit: int | None = None


class InvalidRequest(JobsError):
    """The request breaks its contract. Metadata: field and limit of the first violation."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        first = violations[0]
        super().__init__(field=first.field, limit=first.limit)
        self.violations = tuple(violations)
        self.args = (f"{first.field}: {first.description}",)

    def in_entry(self, index: int) -> Self:
        """Say which entry of a batch is refused: the fields become those of the whole request."""
        entry = f"requests[{index}]"
        InvalidRequest.__init__(
            self, [replace(each, field=nested_path(entry, each.field)) for each in self.violations]
        )
        self.metadata["index"] = str(index)
        return self


class InvalidPageToken(InvalidRequest):
    """The token is not one of ours, or belongs to another filter or view."""


class PayloadTooLarge(InvalidRequest):
    """A JSON payload is over its limit in bytes."""


class RequestIdConflict(JobsError):
    """Metadata: request_id, job_id (of the job that has it; None: two entries of one call have it)."""

    def __init__(self, *, request_id: object, job_id: object = None) -> None:
        super().__init__(request_id=request_id, job_id=job_id)
        used = "in another entry" if job_id is None else f"for another request, which made job {job_id}"
        self.args = (f"The request_id {request_id} was used {used}.",)


class JobNotCancellable(JobsError):
    """Metadata: job_id, status, cancelled_by (only for CANCELLED)."""

    sentence = "Job {job_id} is {status} and can't be cancelled."


class JobNotRetryable(JobsError):
    """Metadata: job_id, status."""

    sentence = "Job {job_id} is {status} and can't be tried again."


class DependencyNotSatisfiable(JobsError):
    """Metadata: job_id (of the dependency), status."""

    sentence = "Job {job_id}, which was to be waited for, is {status}."


class LeaseLost(JobsError):
    """Nothing was written. Metadata: job_id, status, attempt."""

    sentence = "The lease of job {job_id} is lost: the job is {status} in attempt {attempt}."


class TooManyWaiters(JobsError):
    """Metadata: limit (calls)."""

    sentence = "Already {limit} calls wait here. Try again shortly."


class Overloaded(JobsError):
    """Too much at once; nothing was done. Metadata: limit, resource (of what there is too much)."""

    sentence = "The service is overloaded: its limit of {limit} {resource} is reached. Try again shortly."


class ShuttingDown(JobsError):
    """This replica is draining."""

    sentence = "This replica is shutting down. Try again."


class RowLocked(JobsError):
    """Another transaction held a row of this one item for longer than the lock limit."""

    sentence = "The row is held by another transaction. Try again shortly."


class DatabaseUnavailable(JobsError):
    """The database does not answer, or the connection was lost at COMMIT.

    A write may or may not have happened: request_id tells on the next try.
    """

    sentence = "The database is not available. Try again shortly."


class TransactionRolledBack(DatabaseUnavailable):
    """Surely nothing was committed (deadlock, serialization, connection lost before COMMIT)."""


class DeadlineExceeded(JobsError):
    """The caller's deadline passed before the work was done."""

    sentence = "The deadline passed before the work was done."


class InternalError(JobsError):
    """A fault of the service. Metadata: correlation_id, which the log has too."""

    sentence = "Internal error. The log has the cause under correlation id {correlation_id}."
