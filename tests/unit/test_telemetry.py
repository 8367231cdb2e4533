"""Gauges that go away rather than lie, and trace contexts that are taken or left."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from jobs_service.telemetry.job_gauges import JobFigures, JobGauges, Unread
from jobs_service.telemetry.metrics import Metrics
from jobs_service.telemetry.traces import TraceContext, parse_traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
FIGURES = JobFigures(
    jobs={("IMPORT", "PENDING"): 7},
    queue={("IMPORT", "ready"): 5},
    oldest_ready_seconds={"IMPORT": 2.5},
    oldest_pending_seconds=3.5,
    untold=Unread(1, 0.25),
    lease_overdue_seconds=0.75,
    unread={"job_counts": Unread(2, 0.5)},
)


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def shown(gauges: JobGauges) -> dict[str, float]:
    return {sample.name: sample.value for family in gauges.collect() for sample in family.samples}


def test_figures_are_shown_with_their_age() -> None:
    clock = Clock()
    gauges = JobGauges(clock)
    gauges.set(FIGURES, fresh_seconds=15)
    clock.now += 15
    assert shown(gauges) == {
        "jobs_jobs": 7,
        "jobs_queue": 5,
        "jobs_oldest_ready_seconds": 2.5,
        "jobs_lease_overdue_seconds": 0.75,
        "jobs_untold_ends": 1,
        "jobs_untold_ends_oldest_seconds": 0.25,
        "jobs_oldest_pending_seconds": 3.5,
        "jobs_events_unread": 2,
        "jobs_events_unread_oldest_seconds": 0.5,
        "jobs_counts_age_seconds": 15,
    }


def test_figures_that_are_too_old_are_shown_no_more_and_come_back() -> None:
    clock = Clock()
    gauges = JobGauges(clock)
    gauges.set(FIGURES, fresh_seconds=15)
    clock.now += 16
    assert shown(gauges) == {"jobs_counts_age_seconds": 16}
    gauges.set(FIGURES, fresh_seconds=15)
    assert shown(gauges)["jobs_jobs"] == 7


def test_before_the_first_figures_the_age_is_that_of_the_process() -> None:
    clock = Clock()
    gauges = JobGauges(clock)
    clock.now += 60
    assert shown(gauges) == {"jobs_counts_age_seconds": 60}


def test_what_is_not_known_is_not_shown() -> None:
    gauges = JobGauges()
    gauges.set(JobFigures(oldest_pending_seconds=None), fresh_seconds=15)
    assert "jobs_oldest_pending_seconds" not in shown(gauges)


def test_a_call_is_counted_once_at_its_end() -> None:
    metrics = Metrics(CollectorRegistry())
    method, label = "/jobs.v1.JobsService/GetJob", {"method": "jobs.v1.JobsService/GetJob"}
    value = metrics.registry.get_sample_value
    metrics.calls.begun(method)
    assert value("jobs_calls_in_progress", label) == 1
    assert value("jobs_call_seconds_count", label) == 0
    metrics.calls.ended(method, "NOT_FOUND", "JOB_NOT_FOUND", 0.03)
    assert value("jobs_calls_in_progress", label) == 0
    assert value("jobs_calls_total", {**label, "code": "NOT_FOUND", "reason": "JOB_NOT_FOUND"}) == 1
    assert value("jobs_call_seconds_bucket", {**label, "le": "0.025"}) == 0
    assert value("jobs_call_seconds_bucket", {**label, "le": "0.05"}) == 1


def test_metrics_of_two_services_in_one_process_are_apart() -> None:
    first, second = Metrics(), Metrics()
    first.database.failed("unavailable")
    assert b'meaning="unavailable"' in generate_latest(first.registry)
    assert b'meaning="unavailable"' not in generate_latest(second.registry)


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"cc-{TRACE}-{SPAN}-01", True),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", True),
    ],
)
def test_a_valid_trace_context_is_taken(header: str, sampled: bool) -> None:
    context = parse_traceparent(header)
    assert context == TraceContext(TRACE, SPAN, sampled)
    assert context.traceparent == f"00-{TRACE}-{SPAN}-{'01' if sampled else '00'}"


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"00-" + TRACE.encode() + b"-" + SPAN.encode() + b"-01",
        "",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-zz",
        f"cc-{TRACE}-{SPAN}-01-{'x' * 1000}",
        f"cc-{TRACE}-{SPAN}-01more",
    ],
)
def test_an_invalid_trace_context_is_left(header: object) -> None:
    assert parse_traceparent(header) is None
