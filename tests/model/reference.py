"""What the life of jobs ought to be: what every call should answer, and what is there then."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from uuid import UUID

PENDING, RUNNING, COMPLETED, FAILED, CANCELLED = "PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"
TERMINAL = {COMPLETED, FAILED, CANCELLED}
OK, LOST = "OK", "LeaseLost"
MAX_RELEASES = 100


@dataclass
class Known:
    """A job as it ought to be. slack: how much lower its version may be, as changes may come together."""

    job_id: UUID
    dataset_id: int
    run_type: str
    budget: int
    depends_on: frozenset[UUID]
    keep_waiting: bool
    max_attempts: int
    status: str = PENDING
    attempt: int = 0
    claims: int = 0
    releases: int = 0
    version: int = 1
    slack: int = 0
    token: UUID | None = None
    last_token: UUID | None = None
    progress: object = None
    # How each claim ended, by its token: the kind of call, and whether the job was PENDING then.
    ended: dict[UUID, tuple[str, bool]] = field(default_factory=dict)
    events: list[tuple[str, str | None, str]] = field(default_factory=lambda: [("CREATED", None, PENDING)])
    outcomes: list[tuple[int, str, bool]] = field(default_factory=list)

    def to(self, status: str, event: str) -> None:
        """Change the status, with a row of the history."""
        self.events.append((event, self.status, status))
        self.status = status
        self.version += 1


class Reference:
    """All jobs. Every method applies one request and returns what it should be answered."""

    def __init__(self) -> None:
        self.jobs: dict[UUID, Known] = {}
        # What was deleted, and what it was then.
        self.gone: dict[UUID, str] = {}

    def delete(self, job_id: UUID) -> None:
        """It was old."""
        self.gone[job_id] = self.jobs.pop(job_id).status

    def waiting_on(self, job: Known) -> set[UUID]:
        """The dependencies that are not COMPLETED. Those that were deleted were."""
        if job.status != PENDING:
            return set()
        return {one for one in job.depends_on if one in self.jobs and self.jobs[one].status != COMPLETED}

    def creatable(self, depends_on: Iterable[UUID], *, keep_waiting: bool) -> str:
        """What a create with these dependencies is answered."""
        for one in depends_on:
            if one not in self.jobs:
                return "DependencyNotFound"
        if not keep_waiting and any(self.jobs[one].status in {FAILED, CANCELLED} for one in depends_on):
            return "DependencyNotSatisfiable"
        return OK

    def claimed(self, job_id: UUID, token: UUID) -> None:
        """A worker has it now."""
        job = self.jobs[job_id]
        assert job.status == PENDING, "claimed while it was not to be had"
        assert not self.waiting_on(job), "claimed too early"
        job.attempt += 1
        job.claims += 1
        job.token = job.last_token = token
        job.progress = None
        job.to(RUNNING, "CLAIMED")

    def heartbeat(self, job_id: UUID, token: UUID, progress: object) -> str:
        """What a heartbeat finds. Progress that says nothing new changes nothing."""
        job = self.jobs.get(job_id)
        if job is not None and job.token == token:
            if progress is not None and progress != job.progress:
                job.version += 1
                job.progress = progress
            return "RENEWED"
        if job is not None and job.status == CANCELLED and job.last_token == token:
            return "CANCEL_REQUESTED"
        return "LOST"

    def finish(self, kind: str, job_id: UUID, token: UUID, *, for_good: bool = False) -> tuple[str, bool]:
        """End a claim: complete, fail or release. Returns the answer and will_retry."""
        job = self.jobs.get(job_id)
        if job is None:
            return "JobNotFound", False
        if job.token != token:
            repeated = job.ended.get(token, ("", False))
            return (OK, repeated[1]) if repeated[0] == kind else (LOST, False)
        if kind == "complete":
            job.releases = 0
            self._end(job, kind, COMPLETED, "COMPLETED", COMPLETED)
        elif kind == "fail":
            self._spend(job, kind, "ATTEMPT_FAILED", FAILED, for_good=for_good)
        elif job.releases >= MAX_RELEASES:
            self._spend(job, kind, "ATTEMPT_FAILED", FAILED, for_good=False)
        else:
            job.releases += 1
            job.attempt -= 1
            self._end(job, kind, PENDING, "RELEASED", "RELEASED", number=job.attempt + 1)
        return OK, job.ended[token][1]

    def expired(self, job_id: UUID, *, timed_out: bool) -> None:
        """The sweep has taken it back."""
        what = "RUN_TIMED_OUT" if timed_out else "LEASE_EXPIRED"
        self._spend(self.jobs[job_id], "expire", what, what, for_good=False, event_of_end=what)

    def cancel(self, job_id: UUID) -> str:
        """CancelJob."""
        job = self.jobs.get(job_id)
        if job is None:
            return "JobNotFound"
        if job.status in TERMINAL:
            return "JobNotCancellable"
        if job.token is not None:
            self._end(job, "cancel", CANCELLED, CANCELLED, CANCELLED)
        else:
            job.to(CANCELLED, "CANCELLED")
            self._tell(job)
        return OK

    def retry(self, job_id: UUID) -> str:
        """RetryJob."""
        job = self.jobs.get(job_id)
        if job is None:
            return "JobNotFound"
        if job.status not in {FAILED, CANCELLED}:
            return "JobNotRetryable"
        for one in sorted(job.depends_on):
            if self.gone.get(one, COMPLETED) != COMPLETED:
                return "DependencyNotFound"
            if one in self.jobs and self.jobs[one].status in {FAILED, CANCELLED} and not job.keep_waiting:
                return "DependencyNotSatisfiable"
        job.progress = None
        job.max_attempts += job.budget
        job.releases = 0
        job.to(PENDING, "RETRIED")
        return OK

    def _spend(
        self, job: Known, kind: str, event: str, outcome: str, *, for_good: bool, event_of_end: str = FAILED
    ) -> None:
        """An attempt has failed: the job is tried again, or FAILED."""
        job.releases = 0
        again = not for_good and job.attempt < job.max_attempts
        self._end(job, kind, PENDING if again else FAILED, event if again else event_of_end, outcome)

    def _end(
        self, job: Known, kind: str, status: str, event: str, outcome: str, *, number: int | None = None
    ) -> None:
        assert job.token is not None
        job.ended[job.token] = (kind, status == PENDING)
        job.outcomes.append((number or job.attempt, outcome, status == PENDING))
        job.token = None
        job.to(status, event)
        if status in TERMINAL:
            self._tell(job)

    def _tell(self, ended: Known) -> None:
        """Those that wait for it learn of its end."""
        for job in [one for one in self.jobs.values() if ended.job_id in one.depends_on]:
            if job.status == CANCELLED and job.slack and ended.status == COMPLETED:
                # By another end of the same call: it may have been told of this one before.
                job.version += 1
                job.slack += 1
            if job.status != PENDING:
                continue
            if ended.status == COMPLETED:
                job.version += 1
                job.slack += 1
            elif not job.keep_waiting:
                job.slack += 1
                job.to(CANCELLED, "CANCELLED")
                self._tell(job)
