"""What the operations of the core are asked, each with who asks."""

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from jobs_service.model.caller import Caller
from jobs_service.model.errors import JobsError
from jobs_service.model.job import Job, JobStatus, JobView, NewJob, RunType


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """Make this job. traceparent: the trace context to keep with it; no part of what makes it the same.

    depends_on_indexes: the places of requests before this one, of the same batch, whose jobs it waits for.
    """

    caller: Caller
    job: NewJob
    traceparent: str | None = None
    depends_on_indexes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CreateResult:
    """The job made, or found (replayed), or only planned (job_id and times mean nothing then)."""

    job: Job
    replayed: bool = False
    planned: bool = False


@dataclass(frozen=True, slots=True)
class GetRequest:
    """Show this job."""

    caller: Caller
    job_id: UUID


@dataclass(frozen=True, slots=True)
class BatchGetRequest:
    """Show these jobs, one result for each; a job may be asked for twice."""

    caller: Caller
    job_ids: tuple[UUID, ...]
    view: JobView


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """Cancel this job. reason is None when none was given."""

    caller: Caller
    job_id: UUID
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCancelRequest:
    """Cancel these jobs, or up to limit of those that match the filter (not both, not neither)."""

    caller: Caller
    job_ids: tuple[UUID, ...] = ()
    filter: "JobFilter | None" = None
    reason: str | None = None
    limit: int = 1_000


@dataclass(frozen=True, slots=True)
class BatchCancelResult:
    """What became of each job, as it is then in view BASIC. more: there were others that match."""

    results: list[tuple[UUID, Job | JobsError]]
    more: bool = False


@dataclass(frozen=True, slots=True)
class RetryRequest:
    """Make this job, FAILED or CANCELLED, PENDING again."""

    caller: Caller
    job_id: UUID


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the list order: the job that was shown last."""

    create_time: datetime
    job_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs to list; None and empty mean any.

    create_time_from is inclusive, create_time_to exclusive. owner_soeid: the owner, where the caller
    named it so; nobody has that SOEID if there is no owner_id beside it.
    """

    owner_id: int | None = None
    owner_soeid: str | None = None
    dataset_id: int | None = None
    statuses: frozenset[JobStatus] = frozenset()
    run_types: frozenset[RunType] = frozenset()
    external_id: str | None = None
    create_time_from: datetime | None = None
    create_time_to: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListRequest:
    """Show a page: page_size jobs (1..1000) after the cursor, leaving out skip of them."""

    caller: Caller
    filter: JobFilter = field(default_factory=JobFilter)
    page_size: int = 100
    cursor: Cursor | None = None
    skip: int = 0
    include_total: bool = False
    view: JobView = JobView.BASIC


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs in list order. more: there are jobs after the last one.

    total: visible jobs that match the filter, at most TOTAL_CAP; None when not asked for.
    total_capped: that is where the count stopped; there may be more.
    """

    jobs: list[Job]
    more: bool
    total: int | None = None
    total_capped: bool = False
