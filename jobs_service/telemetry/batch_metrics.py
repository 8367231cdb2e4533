"""How calls wait for their batches, and how long these take."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

BATCH_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 12)
_BATCH_ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class BatchFamilies:
    """The metrics of all batched operations."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["operation"]
        self.rows = Histogram(
            "jobs_batch_rows", "Calls in one batch.", labels, buckets=_BATCH_ROWS, registry=registry
        )
        self.waited = Histogram(
            "jobs_batch_wait_seconds",
            "How long a call waited for its batch to begin.",
            labels,
            buckets=BATCH_SECONDS,
            registry=registry,
        )
        self.seconds = Histogram(
            "jobs_batch_seconds",
            "How long a batch ran, reruns and parts included.",
            labels,
            buckets=BATCH_SECONDS,
            registry=registry,
        )
        self.waiting = Gauge(
            "jobs_waiting_calls", "Calls that wait for their batch or thread now.", labels, registry=registry
        )
        self.refused = Counter(
            "jobs_queue_refusals", "Calls refused because the queue was full.", labels, registry=registry
        )
        self.splits = Counter(
            "jobs_batch_splits", "Batches that failed whole and went on in halves.", labels, registry=registry
        )
        self.reruns = Counter(
            "jobs_transaction_reruns",
            "Transactions run again after they were rolled back: deadlocks, lost connections.",
            labels,
            registry=registry,
        )


class BatchMetrics:
    """The metrics of one operation: a batched one, or the lists."""

    def __init__(self, families: BatchFamilies, operation: str) -> None:
        self.operation = operation
        self._families = families
        self.refused = families.refused.labels(operation)
        self.splits = families.splits.labels(operation)
        self.reruns = families.reruns.labels(operation)
        self._waiting = families.waiting.labels(operation)
        # Made by the first batch: the lists have none, and would show empty histograms.
        self._rows: Histogram | None = None

    def waiting_are(self, waiting: Callable[[], int]) -> None:
        """Ask this function for the number of waiting calls at every scrape."""
        self._waiting.set_function(waiting)

    @contextmanager
    def running(self, waited: list[float]) -> Iterator[None]:
        """Measure a batch. waited: how long each of its calls has waited, in seconds."""
        if self._rows is None:
            self._rows = self._families.rows.labels(self.operation)
            self._waited = self._families.waited.labels(self.operation)
            self._seconds = self._families.seconds.labels(self.operation)
        self._rows.observe(len(waited))
        for seconds in waited:
            self._waited.observe(seconds)
        began = perf_counter()
        try:
            yield
        finally:
            self._seconds.observe(perf_counter() - began)
