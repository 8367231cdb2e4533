"""What becomes of work: claims, leases taken back, what was deleted because of its age."""

from prometheus_client import CollectorRegistry, Counter, Gauge

RUN_TYPES = ("EXPLORATION", "IMPORT", "SAMPLING", "SQL_TRANSFORM")
EXPIRIES = ("LEASE_EXPIRED", "RUN_TIMED_OUT")


class WorkMetrics:
    """Counted at the seams, by whoever calls the core. run_type and outcome: words of the model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.claims = Counter(
            "jobs_claims", "Jobs that this process gave to workers.", ["run_type"], registry=registry
        )
        self.leases_expired = Counter(
            "jobs_leases_expired",
            "Leases that this process took back, by how the attempt ended.",
            ["outcome"],
            registry=registry,
        )
        self.waiting_claims = Gauge(
            "jobs_waiting_claims",
            "Calls of workers that wait now: claims for jobs, heartbeats for a cancel.",
            registry=registry,
        )
        self.purged_jobs = Counter(
            "jobs_purged_jobs", "Jobs that this process deleted because of their age.", registry=registry
        )
        self.purged_events = Counter(
            "jobs_purged_events", "Events that this process deleted because of their age.", registry=registry
        )
        # An alert on what happens for the first time needs the zero before it.
        for run_type in RUN_TYPES:
            self.claims.labels(run_type)
        for outcome in EXPIRIES:
            self.leases_expired.labels(outcome)
