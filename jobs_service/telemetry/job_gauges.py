"""Gauges of what the database holds: as it was last read, and gone when that was too long ago."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class Unread:
    """What is still to be read or told: how much (capped), and the age of the oldest in seconds."""

    events: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFigures:
    """What was read.

    jobs: by run type and status. queue: jobs that wait for a worker, by run type and state (ready, held,
    delayed), capped. oldest_..._seconds: left out or None where it is not known. untold: jobs that ended and
    whose dependants do not know yet. lease_overdue_seconds: since the first of the leases expired that were
    not taken back. unread: by reader of the history.
    """

    jobs: Mapping[tuple[str, str], int] = field(default_factory=dict)
    queue: Mapping[tuple[str, str], int] = field(default_factory=dict)
    oldest_ready_seconds: Mapping[str, float] = field(default_factory=dict)
    oldest_pending_seconds: float | None = None
    untold: Unread | None = None
    lease_overdue_seconds: float | None = None
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
    untold = figures.untold
    return [
        _family(
            "jobs_jobs",
            "Jobs by run type and status.",
            ["run_type", "status"],
            figures.jobs.items(),
        ),
        _family(
            "jobs_queue",
            "Jobs that wait for a worker, or a place (held), or their time (delayed), 10,000 at most.",
            ["run_type", "state"],
            figures.queue.items(),
        ),
        _family(
            "jobs_oldest_ready_seconds",
            "How long the oldest job has been ready that no worker has claimed; 0 where there is none.",
            ["run_type"],
            (((run_type,), seconds) for run_type, seconds in figures.oldest_ready_seconds.items()),
        ),
        _figure(
            "jobs_oldest_pending_seconds",
            "The same of all run types, and of the jobs too that wait for a place of their data set.",
            figures.oldest_pending_seconds,
        ),
        _figure(
            "jobs_lease_overdue_seconds",
            "How long ago the first lease expired that was not taken back yet; 0: none.",
            figures.lease_overdue_seconds,
        ),
        _figure(
            "jobs_untold_ends",
            "Jobs that ended and whose dependants are still to be told, 1,000 at most.",
            untold.events if untold else None,
        ),
        _figure(
            "jobs_untold_ends_oldest_seconds",
            "How long ago the first of them ended; 0: none.",
            untold.oldest_seconds if untold else None,
        ),
        _family(
            "jobs_events_unread",
            "Events that a reader has not read, 10,000 at most.",
            ["reader"],
            (((reader,), left.events) for reader, left in figures.unread.items()),
        ),
        _family(
            "jobs_events_unread_oldest_seconds",
            "Age of the oldest event not read; 0: all read.",
            ["reader"],
            (((reader,), left.oldest_seconds) for reader, left in figures.unread.items()),
        ),
        _figure("jobs_counts_age_seconds", "Time since these figures were read, or since the start.", age),
    ]


def _family(
    name: str, about: str, labels: Sequence[str], figures: Iterable[tuple[Sequence[str], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, about, labels=labels)
    for values, figure in figures:
        family.add_metric(values, figure)
    return family


def _figure(name: str, about: str, figure: float | None) -> GaugeMetricFamily:
    return _family(name, about, [], [] if figure is None else [([], figure)])
