"""What workers ask of the core, and what they are answered."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any
from uuid import UUID

from jobs_service.model.caller import Caller
from jobs_service.model.job import Job, JsonObject, RunType


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRequest:
    """Give this worker up to max_jobs (1..100) jobs of these run types, each for lease_duration."""

    caller: Caller
    worker_id: str
    run_types: frozenset[RunType]
    max_jobs: int
    lease_duration: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A job that the worker has now, in view FULL, and the token that proves it."""

    job: Job
    lease_token: UUID
    lease_expire_time: datetime
    attempt: int
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """The jobs claimed, in the order of claiming.

    not_granted: run types asked for that the caller may not work on. more: there may be further jobs
    ready, which did not fit in number or in bytes.
    """

    claims: list[Claim]
    not_granted: frozenset[RunType] = frozenset()
    more: bool = False


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A lease to renew. progress: {percent, message, details} as JSON; None: nothing new."""

    job_id: UUID
    lease_token: UUID
    progress: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class HeartbeatRequest:
    """Renew these leases for so long from now."""

    caller: Caller
    leases: tuple[Heartbeat, ...]
    lease_duration: timedelta


class LeaseState(Enum):
    """What a heartbeat finds. With all but RENEWED the worker must stop."""

    RENEWED = "renewed"
    CANCEL_REQUESTED = "cancel requested"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class HeartbeatResult:
    """What became of one lease. lease_expire_time: only of one that is RENEWED."""

    state: LeaseState
    lease_expire_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """The job is done. summary_bytes: the summary as JSON with all digits of its numbers."""

    output_summary: JsonObject | None
    summary_bytes: int
    output_commit_id: str | None


@dataclass(frozen=True, slots=True)
class Failure:
    """The attempt failed. retry_delay: the wait before the next one, None: as the job's policy says."""

    type: str
    message: str
    non_retryable: bool
    retry_delay: timedelta | None


@dataclass(frozen=True, slots=True)
class Release:
    """The worker gives the job back, the attempt is not spent.

    unseen: the service itself does it, for a worker that never learned of its claim: it counts for nothing.
    """

    delay: timedelta = timedelta(0)
    unseen: bool = False


Outcome = Completion | Failure | Release


@dataclass(frozen=True, slots=True)
class FinishRequest:
    """End the claim that this token is of."""

    caller: Caller
    job_id: UUID
    lease_token: UUID
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class FinishResult:
    """The job as it is now, in view FULL. will_retry: whether the end of this claim made it PENDING again."""

    job: Job
    will_retry: bool
