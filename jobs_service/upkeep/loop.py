"""Runs the duties, each every so often, on a thread of its own: the event loop has calls to answer."""

import logging
import random
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from jobs_service.telemetry.metrics import DutyMetrics

_JITTER = 0.1

_log = logging.getLogger(__name__)


class Duty(Protocol):
    """Work that every replica does; two of them at the same time must be no more than a waste."""

    name: str
    every: float
    """Seconds from the end of a run to the next."""

    def run_once(self) -> bool:
        """Do one bounded portion; True: there is more, run again at once. What it raises is logged."""


class Upkeep:
    """Runs duties until stopped. Nothing that a duty raises ends it."""

    def __init__(self, duties: Sequence[Duty], metrics: DutyMetrics) -> None:
        self._duties = list(duties)
        self._metrics = metrics
        self._next = {duty.name: 0.0 for duty in duties}
        self._failing: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        for duty in duties:
            metrics.begin(duty.name)

    def start(self) -> None:
        """Begin; every duty runs at once for the first time."""
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing new. Does not wait; may be called from any thread, more than once."""
        self._stop.set()

    def ended(self, seconds: float) -> bool:
        """Wait so long for the run in progress after stop; returns whether it has ended."""
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def run_due(self, now: float) -> float:
        """Run once each duty that is due; returns when the next one is, on the same clock."""
        for duty in self._duties:
            if self._next[duty.name] <= now and not self._stop.is_set():
                again = self.run_once(duty)
                # Replicas that started together must not go on asking together.
                wait = 0.0 if again else duty.every * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311
                self._next[duty.name] = now + wait
        return min(self._next.values(), default=now + 1)

    def run_once(self, duty: Duty) -> bool:
        """Run a duty; returns whether there is more to do. Failures are logged when they begin and end."""
        began = time.perf_counter()
        try:
            again, failure = duty.run_once(), None
        except Exception as error:
            again, failure = False, error
        self._metrics.ran(duty.name, time.perf_counter() - began, failed=failure is not None)
        if failure is not None and duty.name not in self._failing:
            self._failing.add(duty.name)
            _log.warning("a duty fails", extra={"fields": {"duty": duty.name, "error": repr(failure)}})
        elif failure is None and duty.name in self._failing:
            self._failing.remove(duty.name)
            _log.info("a duty works again", extra={"fields": {"duty": duty.name}})
        return again

    def _run(self) -> None:
        wait = 0.0
        while not self._stop.wait(wait):
            wait = max(0.0, self.run_due(time.monotonic()) - time.monotonic())
