"""Cancels the jobs of deleted data sets: those that the deletion itself left, and those created meanwhile."""

from jobs_service.core.orphans import Orphans


class CancelOrphans:
    """One portion a run, whichever replica comes first."""

    name = "cancel_orphans"

    def __init__(self, orphans: Orphans, *, every: float = 5.0) -> None:
        self.every = every
        self._orphans = orphans

    def run_once(self) -> bool:
        """Cancel a portion; True: there is more."""
        return self._orphans.cancel_some()
