"""Which status may follow which, as a table; what the history calls each change."""

from enum import StrEnum

from jobs_service.model.job import JobStatus

TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.PENDING: frozenset({JobStatus.RUNNING, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.RUNNING: frozenset(
        {JobStatus.PENDING, JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED}
    ),
    JobStatus.COMPLETED: frozenset(),
    JobStatus.FAILED: frozenset({JobStatus.PENDING}),
    JobStatus.CANCELLED: frozenset({JobStatus.PENDING}),
}

TERMINAL = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED})
"""The statuses in which a job has an end_time."""

ACTIVE = frozenset(JobStatus) - TERMINAL


def may_become(before: JobStatus, after: JobStatus) -> bool:
    """Whether a job may go from one status to the other."""
    return after in TRANSITIONS[before]


class EventType(StrEnum):
    """What happened to a job, as its history names it."""

    CREATED = "CREATED"
    CLAIMED = "CLAIMED"
    COMPLETED = "COMPLETED"
    ATTEMPT_FAILED = "ATTEMPT_FAILED"
    """The job is PENDING again."""
    FAILED = "FAILED"
    RELEASED = "RELEASED"
    LEASE_EXPIRED = "LEASE_EXPIRED"
    RUN_TIMED_OUT = "RUN_TIMED_OUT"
    CANCELLED = "CANCELLED"
    RETRIED = "RETRIED"
