"""Gauges of what the database holds: as it was last read, and gone when that was too long ago."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class Unread:
    """Events that a reader has not read: how many (capped), and the age of the oldest in seconds."""

    events: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class JobFigures:
    """What was read. jobs: by run type and status. oldest_pending_seconds: None where none was found."""

    jobs: Mapping[tuple[str, str], int] = field(default_factory=dict)
    oldest_pending_seconds: float | None = None
    unread: Mapping[str, Unread] = field(default_factory=dict)


class JobGauges(Collector):
    """Shows the figures that were set last. All replicas of one database show the same."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._figures: JobFigures | None = None
        self._set_at = clock()
        self._fresh_seconds = 0.0

    def set(self, figures: JobFigures, *, fresh_seconds: float) -> None:
        """Show these figures for so long; after that rather none than old ones."""
        with self._lock:
            self._figures, self._set_at, self._fresh_seconds = figures, self._clock(), fresh_seconds

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The families without figures, for the registry's check for names used twice."""
        return _families(JobFigures(), 0.0)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The families with the figures; no question to the database."""
        with self._lock:
            figures, age, fresh = self._figures, self._clock() - self._set_at, self._fresh_seconds
        if figures is None or age > fresh:
            figures = JobFigures()
        return _families(figures, age)


def _families(figures: JobFigures, age: float) -> list[GaugeMetricFamily]:
    jobs = GaugeMetricFamily("jobs_jobs", "Jobs by run type and status.", labels=["run_type", "status"])
    for labels, number in figures.jobs.items():
        jobs.add_metric(labels, number)
    pending = GaugeMetricFamily(
        "jobs_oldest_pending_seconds",
        "How long the job has been waiting that was created first of those that wait; 0 where none does.",
    )
    if figures.oldest_pending_seconds is not None:
        pending.add_metric([], figures.oldest_pending_seconds)
    unread = GaugeMetricFamily(
        "jobs_events_unread", "Events that a reader has not read, 10,000 at most.", labels=["reader"]
    )
    oldest = GaugeMetricFamily(
        "jobs_events_unread_oldest_seconds",
        "Age of the oldest event not read; 0: all read.",
        labels=["reader"],
    )
    for reader, left in figures.unread.items():
        unread.add_metric([reader], left.events)
        oldest.add_metric([reader], left.oldest_seconds)
    counted = GaugeMetricFamily(
        "jobs_counts_age_seconds", "Time since these figures were read, or since the start.", value=age
    )
    return [jobs, pending, unread, oldest, counted]
