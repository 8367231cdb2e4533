"""Jobs whose data set was deleted: cancelled in portions, until none can come any more."""

from uuid import UUID

from jobs_service.core.cancel_jobs import Cancellation, cancel_locked
from jobs_service.core.signals import Signals
from jobs_service.model.job import JobStatus, JobView
from jobs_service.model.states import may_become
from jobs_service.storage.database import Database, Transaction
from jobs_service.storage.deleted_datasets import DeletedDataset

PORTION = 500
"""Jobs that one transaction cancels."""
_DATASETS = 100
"""Deleted data sets that one run looks at."""


class Orphans:
    """Cancels what deleted data sets have left. Any number may do so at once. Raises DatabaseUnavailable."""

    def __init__(self, database: Database, signals: Signals) -> None:
        self._database = database
        self._signals = signals

    def cancel_some(self) -> bool:
        """Cancel a portion; whether there is more to be done at once.

        A job that another transaction holds is left for the next time.
        """
        return any(self._cancel(deleted) for deleted in self._settled(_DATASETS))

    def cancel_of(self, dataset_id: int) -> None:
        """Cancel a portion of this data set's jobs, if it is deleted."""
        for deleted in self._settled(1, dataset_id):
            self._cancel(deleted)

    def _settled(self, limit: int, dataset_id: int | None = None) -> list[DeletedDataset]:
        with self._database.transaction() as tx:
            tx.deleted_datasets.settle()
            # Before any job is looked for: what is over now, nobody adds to later.
            return tx.deleted_datasets.settled(limit, dataset_id)

    def _cancel(self, deleted: DeletedDataset) -> bool:
        with self._database.transaction() as tx:
            job_ids = tx.deleted_datasets.orphans(deleted, PORTION)
            if not job_ids and deleted.is_over:
                tx.deleted_datasets.remove(deleted)
            cancellations = _cancellations(tx, deleted, job_ids) if job_ids else []
            cancel_locked(tx, cancellations, wait=False)
        self._signals.tell(tx.news)
        return len(job_ids) == PORTION and bool(cancellations)


def _cancellations(tx: Transaction, deleted: DeletedDataset, job_ids: list[UUID]) -> list[Cancellation]:
    reason = f"data set {deleted.dataset_id} was deleted"
    found = tx.jobs.lock(job_ids, wait=False, view=JobView.BASIC)
    return [
        Cancellation(job, deleted.by, reason)
        for job_id, job in found.jobs.items()
        if job_id in found.locked and may_become(job.status, JobStatus.CANCELLED)
    ]
