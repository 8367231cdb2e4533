"""Where claims begin to look, while an old transaction keeps what was claimed before.

Dead rows stand before the first job to claim, and every claim would pass all of them. One duty does instead,
several times a second (upkeep/find_heads.py); claims begin where it found the first job. What comes before
that place later (a retry, an urgent job) is claimed once the duty has seen it, or nothing else is left.
"""

import threading
import time
from collections.abc import Collection

from jobs_service.model.job import RunType
from jobs_service.storage.claims import FIRST, Place

FRESH_SECONDS = 1.0
"""A place that is older is not trusted: claims look at everything again."""


class QueueHeads:
    """The places, by run type; shared by the duty and the claims of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heads: dict[RunType, tuple[Place, float]] = {}

    def set(self, run_type: RunType, head: Place | None) -> bool:
        """Begin there from now on; None: at the first. Returns whether claims may find more than before."""
        with self._lock:
            before = self._heads.pop(run_type, None)
            if head is not None:
                self._heads[run_type] = (head, time.monotonic())
        return before is not None and (head is None or head < before[0])

    def of(self, run_types: Collection[RunType]) -> dict[RunType, Place]:
        """Return for each of these run types where to begin."""
        oldest = time.monotonic() - FRESH_SECONDS
        with self._lock:
            found = {run_type: self._heads.get(run_type, (FIRST, oldest)) for run_type in sorted(run_types)}
        return {run_type: head if since > oldest else FIRST for run_type, (head, since) in found.items()}
