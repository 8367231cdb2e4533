"""What callers sent and were told, written down as it happens, and compared with what is there at the end."""

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.support.postgres import connect

UNKNOWN, ACKNOWLEDGED, REFUSED = "unknown", "acknowledged", "refused"


@dataclass(frozen=True, slots=True)
class Stored:
    """A row of jobs, ids as text."""

    job_id: str
    request_id: str | None
    status: str
    version: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many creates were acknowledged, how many of those are not there, how many jobs are there twice.

    wrong: every contradiction, in words; empty unless something is wrong.
    """

    acknowledged: int
    lost: int
    doubled: int
    wrong: list[str] = field(default_factory=list)

    def require(self) -> None:
        """AssertionError unless all is as it was said."""
        assert (self.lost, self.doubled, self.wrong[:10]) == (0, 0, [])


class History:
    """Of any number of callers at once. A job is cancelled by one caller at most, again until answered.

    Only CreateJob with a request_id and CancelJob may have changed the jobs that it is held against.
    """

    def __init__(self) -> None:
        self.acknowledged: dict[str, str] = {}
        self._sent: set[str] = set()
        self._cancels: dict[str, str] = {}
        self._tries: Counter[str] = Counter()
        self._versions: dict[str, int] = {}
        self._statuses: dict[tuple[str, int], str] = {}
        self._wrong: list[str] = []
        self._lock = threading.Lock()

    def sending(self, request_id: str) -> None:
        """A create is about to be sent for the first time."""
        self._sent.add(request_id)

    def created(self, request_id: str, job_id: str) -> None:
        """A create was acknowledged, the first time or again."""
        with self._lock:
            if self.acknowledged.setdefault(request_id, job_id) != job_id:
                self._wrong.append(f"{request_id} was acknowledged with two jobs")

    def cancelling(self, job_id: str) -> None:
        """A cancel is about to be sent, the first time or again."""
        self._tries[job_id] += 1
        self._cancels[job_id] = UNKNOWN

    def cancelled(self, job_id: str) -> None:
        """A cancel was acknowledged."""
        self._cancels[job_id] = ACKNOWLEDGED

    def refused(self, job_id: str) -> None:
        """A cancel was told that the job is not cancellable: one without an answer must have been done."""
        self._cancels[job_id] = REFUSED
        if self._tries[job_id] == 1:
            self._wrong.append(f"{job_id}: its first cancel was refused")

    def known(self, job_id: str) -> int:
        """The highest version that anybody has been answered so far; 0: none."""
        return self._versions.get(job_id, 0)

    def read(self, job_id: str, version: int, status: str, *, since: int) -> None:
        """A job was answered to a call that began when version `since` was known."""
        with self._lock:
            if version < since:
                self._wrong.append(f"{job_id}: version {version} was read after {since}")
            self._versions[job_id] = max(version, self.known(job_id))
            if self._statuses.setdefault((job_id, version), status) != status:
                self._wrong.append(f"{job_id}: version {version} had two statuses")

    def not_listed(self, job_id: str) -> None:
        """A list left out a job that was acknowledged before it began."""
        self._wrong.append(f"{job_id}: not in a list that must have it")

    def check(self, url: str) -> Verdict:
        """Compare with a database that holds the jobs of this history and no others."""
        with connect(url) as sql:
            rows = sql.execute("SELECT job_id::text, request_id::text, status, version FROM jobs")
            jobs = [Stored(*row) for row in rows]
            events = sql.execute("SELECT job_id::text, type FROM job_events ORDER BY event_id").fetchall()
        return self.compare(jobs, events)

    def compare(self, jobs: Sequence[Stored], events: Iterable[tuple[str, str]]) -> Verdict:
        """Compare with these rows; events: job_id and type, oldest first."""
        told: dict[str, list[str]] = defaultdict(list)
        for job_id, kind in events:
            told[job_id].append(kind)
        there = {job.request_id: job for job in jobs if job.request_id}
        lost = sum(
            request_id not in there or there[request_id].job_id != job_id
            for request_id, job_id in self.acknowledged.items()
        )
        wrong = [*self._wrong, *self._unsent(jobs), *self._orphans(jobs, told)]
        for job in jobs:
            wrong += self._of_job(job, told[job.job_id])
        return Verdict(len(self.acknowledged), lost, len(jobs) - len(there), wrong)

    def _unsent(self, jobs: Iterable[Stored]) -> list[str]:
        return [f"{job.job_id} was never asked for" for job in jobs if job.request_id not in self._sent]

    def _orphans(self, jobs: Iterable[Stored], told: Mapping[str, list[str]]) -> list[str]:
        ids = {job.job_id for job in jobs}
        return [
            f"{job_id} has events {kinds} and no row" for job_id, kinds in told.items() if job_id not in ids
        ]

    def _of_job(self, job: Stored, kinds: list[str]) -> list[str]:
        cancelled = job.status == "CANCELLED"
        wrong = []
        if kinds != ["CREATED", "CANCELLED"][: 1 + cancelled] or job.version != len(kinds):
            wrong.append(f"{job.job_id} is {job.status} in version {job.version}, its events: {kinds}")
        if job.version < self.known(job.job_id):
            wrong.append(f"{job.job_id} is older than what was answered")
        asked = self._cancels.get(job.job_id)
        if (asked in {ACKNOWLEDGED, REFUSED} and not cancelled) or (asked is None and cancelled):
            wrong.append(f"{job.job_id} is {job.status}, its cancel: {asked}")
        return wrong
