"""Finds where claims begin to look, where it takes long to find the first job; see core/queue_heads.py."""

import time

from jobs_service.core.queue_heads import QueueHeads
from jobs_service.core.signals import Signals
from jobs_service.model.job import RunType
from jobs_service.storage.database import Database, Transaction

SLOW_SECONDS = 0.005
"""To find the first job takes a tenth of that, unless what was claimed before stands in the way."""


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
        """Find the first job of each run type; claims begin there if that took long."""
        with self._database.transaction() as tx:
            earlier = {run_type for run_type in RunType if self._find(tx, run_type)}
        self._signals.ready.tell(earlier)
        return False

    def _find(self, tx: Transaction, run_type: RunType) -> bool:
        began = time.perf_counter()
        head = tx.queue_duties.head(run_type)
        took = time.perf_counter() - began
        return self._heads.set(run_type, head if took > SLOW_SECONDS else None)
