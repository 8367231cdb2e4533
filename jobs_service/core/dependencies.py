"""What a job that is to be created shall wait for: whether its owner sees it, and whether it can come."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from jobs_service.model.errors import DependencyNotFound, DependencyNotSatisfiable, JobsError, RowLocked
from jobs_service.model.job import JobStatus
from jobs_service.storage.database import Transaction

_HOPELESS = frozenset({JobStatus.FAILED, JobStatus.CANCELLED})


@dataclass(slots=True)
class Waiting:
    """A job to be, by what it waits for.

    subject_id: who must see each of depends_on, which are jobs that exist. siblings: jobs that will be
    created with it. only_planned: nothing will be written, so nothing need be locked.
    refused: set by judge, as waiting_on: those that are not COMPLETED, siblings among them, in order.
    """

    subject_id: int
    depends_on: Sequence[UUID]
    siblings: Sequence[UUID] = ()
    keep_waiting: bool = False
    only_planned: bool = False
    refused: JobsError | None = None
    waiting_on: tuple[UUID, ...] = ()
    _statuses: dict[UUID, JobStatus] = field(default_factory=dict)

    @property
    def all(self) -> tuple[UUID, ...]:
        """Everything that it waits for, each once."""
        return tuple(dict.fromkeys([*self.depends_on, *self.siblings]))

    def see(self, visible: dict[tuple[int, UUID], JobStatus]) -> None:
        """Take the status of each as it was read. Refuses what is not there, or not visible."""
        for job_id in self.depends_on:
            status = visible.get((self.subject_id, job_id))
            if status is None:
                self.refused = DependencyNotFound(job_id=job_id)
                return
            self._statuses[job_id] = status

    def to_lock(self) -> set[UUID]:
        """Those that must not change unseen while this job is being created, nor be purged."""
        if self.refused or self.only_planned:
            return set()
        # COMPLETED stays so, but once the row is purged nothing says that it was. What has failed refuses.
        return {
            job_id
            for job_id, status in self._statuses.items()
            if self.keep_waiting or status not in _HOPELESS
        }

    def decide(self, locked: dict[UUID, JobStatus], *, waited: bool) -> None:
        """Decide by the status of each, as it is under its lock."""
        for job_id in self.to_lock() - locked.keys():
            self.refused = DependencyNotFound(job_id=job_id) if waited else RowLocked()
            return
        for job_id in self.depends_on if not self.refused else ():
            status = self._statuses[job_id] = locked.get(job_id, self._statuses[job_id])
            if status in _HOPELESS and not self.keep_waiting:
                self.refused = DependencyNotSatisfiable(job_id=job_id, status=status)
                return
        unfinished = [each for each, status in self._statuses.items() if status is not JobStatus.COMPLETED]
        # Of siblings that are only planned there are no ids.
        self.waiting_on = tuple(sorted({*unfinished, *(() if self.only_planned else self.siblings)}))


def judge(tx: Transaction, waiting: Sequence[Waiting], *, wait: bool) -> None:
    """Decide about each, and keep what it waits for from changing until the transaction ends.

    wait: for who holds one of those, which raises RowLocked after the lock limit; else RowLocked is the
    refusal of whom it concerns.
    """
    asked = {(each.subject_id, job_id) for each in waiting for job_id in each.depends_on}
    visible = tx.dependencies.visible(asked) if asked else {}
    for each in waiting:
        each.see(visible)
    to_lock = {job_id for each in waiting for job_id in each.to_lock()}
    locked = tx.dependencies.share(to_lock, wait=wait) if to_lock else {}
    for each in waiting:
        each.decide(locked, waited=wait)
