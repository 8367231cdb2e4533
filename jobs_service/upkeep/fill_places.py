"""Fills places of limited data sets that nobody has filled: of a limit that was set or removed meanwhile."""

from collections.abc import Collection

from jobs_service.core.signals import Signals
from jobs_service.storage.database import Database


class FillPlaces:
    """Whoever frees a place fills it; this finds what was left all the same."""

    name = "fill_places"

    def __init__(self, database: Database, signals: Signals, *, every: float = 5.0) -> None:
        self.every = every
        self._database = database
        self._signals = signals

    def run_once(self) -> bool:
        """Fill the places that are found free."""
        with self._database.transaction() as tx:
            tx.places.label_leases()
            unfilled = tx.places.unfilled()
        fill(self._database, self._signals, unfilled)
        return False


def fill(database: Database, signals: Signals, dataset_ids: Collection[int]) -> None:
    """Fill the places of these data sets, each in a transaction: who ends a job waits for its limit's row."""
    for dataset_id in sorted(dataset_ids):
        with database.transaction() as tx:
            run_types = tx.places.fill([dataset_id])
        signals.ready.tell(run_types)
