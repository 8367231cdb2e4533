"""Finds where claims begin to look, where it takes long to find the first job; see core/queue_heads.py."""

from jobs_service.core.queue_heads import QueueHeads
from jobs_service.core.signals import Signals
from jobs_service.model.job import RunType
from jobs_service.storage.database import Database

MANY_DEAD_ROWS = 5_000
"""From then on they take milliseconds. Without an old transaction vacuum sees to it that there are fewer."""


class FindHeads:
    """Every replica finds them for itself."""

    name = "find_heads"

    def __init__(
        self, database: Database, signals: Signals, heads: QueueHeads, *, every: float = 0.25
    ) -> None:
        self.every = every
        self._database = database
        self._signals = signals
        self._heads = heads

    def run_once(self) -> bool:
        """Find the first job of each run type, for claims to begin there, if there are many dead rows."""
        with self._database.transaction() as tx:
            many = tx.queue_duties.dead_rows() > MANY_DEAD_ROWS
            heads = {run_type: tx.queue_duties.head(run_type) if many else None for run_type in RunType}
        self._signals.ready.tell({one for one, head in heads.items() if self._heads.set(one, head)})
        return False
