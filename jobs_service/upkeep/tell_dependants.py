"""Tells the dependants of ended jobs of which there were too many, or which were held, at the end itself."""

from jobs_service.core.dependants import work_off
from jobs_service.core.signals import Signals
from jobs_service.storage.database import Database
from jobs_service.storage.dependency_store import FIRST
from jobs_service.upkeep.fill_places import fill


class TellDependants:
    """Works off ended_dependencies in bounded portions, a transaction each, round and round."""

    name = "tell_dependants"

    def __init__(self, database: Database, signals: Signals, *, every: float = 1.0) -> None:
        self.every = every
        self._database = database
        self._signals = signals
        self._after = FIRST
        self._progress = False

    def run_once(self) -> bool:
        """Work off one portion; False: a round is over in which all that was left was held by others."""
        with self._database.transaction() as tx:
            done = work_off(tx, after=self._after)
        self._signals.ready.tell(done.told.run_types)
        self._after = done.after
        self._progress |= done.progress
        fill(self._database, self._signals, done.told.limited)
        if self._after != FIRST:
            return True
        again, self._progress = self._progress, False
        return again
