"""What is counted and measured, as Prometheus reads it. Labels come from fixed lists, never from a caller."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from jobs_service.telemetry.batch_metrics import BATCH_SECONDS, BatchFamilies, BatchMetrics
from jobs_service.telemetry.job_gauges import JobGauges
from jobs_service.telemetry.key_gauges import KeyGauges
from jobs_service.telemetry.work_metrics import WorkMetrics

_CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_CONNECT_SECONDS = (0.0001, 0.001, 0.01, 0.1, 1, 5)

# The time of creation of every series, as a series of its own: nobody asks for it, and it doubles them.
disable_created_metrics()  # type: ignore[no-untyped-call] # the library's


class Metrics:
    """Every metric of one process. registry: a fresh one, unless its owner wants to read it."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = registry or CollectorRegistry()
        self.calls = CallMetrics(registry)
        self.database = DatabaseMetrics(registry)
        self.duties = DutyMetrics(registry)
        self.work = WorkMetrics(registry)
        self.jobs = JobGauges()
        registry.register(self.jobs)
        self.keys = KeyGauges()
        registry.register(self.keys)
        self._batches = BatchFamilies(registry)
        self._ready = Gauge(
            "jobs_ready",
            "1 while health says SERVING: the database answers, not draining.",
            registry=registry,
        )
        self._build = Gauge(
            "jobs_build_info",
            "1; the labels say which release runs and which schema revision it knows.",
            ["version", "schema_revision"],
            registry=registry,
        )

    def batches(self, operation: str) -> BatchMetrics:
        """Return the metrics of one operation, a word of the code."""
        return BatchMetrics(self._batches, operation)

    def ready_is(self, ready: Callable[[], bool]) -> None:
        """Ask this function for readiness at every scrape."""
        self._ready.set_function(lambda: float(ready()))

    def build_is(self, version: str, schema_revision: str) -> None:
        """Say which release this is."""
        self._build.labels(version, schema_revision).set(1)

    def add_process(self) -> None:
        """Add what the process itself and its Python use."""
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)


class CallMetrics:
    """gRPC calls. method: one that is registered; code and reason: words of the contract."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._total = Counter(
            "jobs_calls",
            "gRPC calls that have ended, by status code and reason of the refusal.",
            ["method", "code", "reason"],
            registry=registry,
        )
        self._seconds = Histogram(
            "jobs_call_seconds",
            "Time from a call's arrival to its end, refusals included; streams as long as they last.",
            ["method"],
            buckets=_CALL_SECONDS,
            registry=registry,
        )
        self._in_progress = Gauge(
            "jobs_calls_in_progress", "gRPC calls that have not ended yet.", ["method"], registry=registry
        )
        # Finding a child by its labels costs more than counting with it.
        self._totals: dict[tuple[str, str, str], Counter] = {}
        self._by_method: dict[str, tuple[Gauge, Histogram]] = {}

    def begun(self, method: str) -> None:
        """Count a call in. method: its path, /package.Service/Method."""
        self._of(method)[0].inc()

    def ended(self, method: str, code: str, reason: str, seconds: float) -> None:
        """Count a call out."""
        in_progress, histogram = self._of(method)
        in_progress.dec()
        histogram.observe(seconds)
        key = (method, code, reason)
        if key not in self._totals:
            self._totals[key] = self._total.labels(method.removeprefix("/"), code, reason)
        self._totals[key].inc()

    def _of(self, method: str) -> tuple[Gauge, Histogram]:
        if method not in self._by_method:
            label = method.removeprefix("/")
            self._by_method[method] = (self._in_progress.labels(label), self._seconds.labels(label))
        return self._by_method[method]


class DatabaseMetrics:
    """The pool and what goes wrong with the database."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._connections = Gauge(
            "jobs_pool_connections",
            "Connections to Postgres: in use, idle, and the most there may be.",
            ["state"],
            registry=registry,
        )
        self.wait_seconds = Histogram(
            "jobs_pool_wait_seconds",
            "How long it took to get a connection, a new one's handshake included.",
            buckets=_CONNECT_SECONDS,
            registry=registry,
        )
        self._failures = Counter(
            "jobs_database_failures",
            "Transactions and reads that failed, by what the failure means.",
            ["meaning"],
            registry=registry,
        )
        self.watchdog_shuts = Counter(
            "jobs_watchdog_shuts",
            "Connections cut because the database had not answered for longer than its own limits.",
            registry=registry,
        )

    def pool_is(self, *, used: Callable[[], int], idle: Callable[[], int], size: Callable[[], int]) -> None:
        """Ask these functions at every scrape."""
        for state, function in (("used", used), ("idle", idle), ("size", size)):
            self._connections.labels(state).set_function(function)

    def failed(self, meaning: str) -> None:
        """Count a failure; meaning: a word of the code."""
        self._failures.labels(meaning).inc()


class DutyMetrics:
    """What upkeep does by itself, again and again."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._runs = Counter(
            "jobs_duty_runs", "Runs of a duty, failed ones included.", ["duty"], registry=registry
        )
        self._failures = Counter(
            "jobs_duty_failures", "Runs of a duty that failed.", ["duty"], registry=registry
        )
        self._seconds = Histogram(
            "jobs_duty_seconds", "How long a run took.", ["duty"], buckets=BATCH_SECONDS, registry=registry
        )

    def begin(self, duty: str) -> None:
        """Show this duty, with zeros, before its first run has ended."""
        self._runs.labels(duty)
        self._failures.labels(duty)
        self._seconds.labels(duty)

    def ran(self, duty: str, seconds: float, *, failed: bool) -> None:
        """Count a run."""
        self._runs.labels(duty).inc()
        self._seconds.labels(duty).observe(seconds)
        if failed:
            self._failures.labels(duty).inc()
