"""Traces: what a real collector gets of real calls, and that none of it can hold the service up."""

import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from jobs.v1 import jobs_pb2
from jobs_service.model.caller import Level
from jobs_service.telemetry.otlp import OtlpTracer
from tests.e2e.demo import ALICE, BOB, Demo
from tests.support.client import Client, Metadata, refused
from tests.support.collector import Collector, attributes, collecting
from tests.support.service import wait_until
from tests.support.world import World

OFTEN = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
"""Milliseconds until spans are sent."""
SERVICE = "jobs.v1.JobsService"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    folder = tmp_path_factory.mktemp("traced")
    with Demo(folder, JOBS_OTLP_ENDPOINT=collector.endpoint, **OFTEN) as running:
        yield running


@pytest.fixture
def channel(traced: Demo) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(traced.target) as channel:
        yield channel


def new_trace(flags: str = "01") -> tuple[str, str, Metadata]:
    """The ids of a caller's trace and span, and the header that says so."""
    trace_id, span_id = uuid.uuid4().hex, uuid.uuid4().hex[:16]
    return trace_id, span_id, (("traceparent", f"00-{trace_id}-{span_id}-{flags}"),)


def create(client: Client, metadata: Metadata) -> jobs_pb2.Job:
    request = jobs_pb2.CreateJobRequest(dataset_id=1, run_type=jobs_pb2.RUN_TYPE_IMPORT)
    request.run_parameters.update({"file_path": "a.csv"})
    response: jobs_pb2.CreateJobResponse = client.call("CreateJob", request, metadata=metadata)
    return response.job


def kept_with(demo: Demo, job_id: str) -> str | None:
    with demo.sql() as sql:
        row = sql.execute("SELECT traceparent FROM jobs WHERE job_id = %s", (job_id,)).fetchone()
    assert row is not None
    return None if row[0] is None else str(row[0])


def test_a_call_is_a_part_of_its_callers_trace_down_to_the_transaction(
    traced: Demo, collector: Collector, channel: grpc.Channel
) -> None:
    trace_id, span_id, metadata = new_trace()
    job = create(Client(channel, traced.token(ALICE)), (*metadata, ("x-correlation-id", "c-1")))
    call = collector.wait_for("the call's span", name=f"{SERVICE}/CreateJob", trace_id=trace_id)
    assert call.parent_span_id.hex() == span_id
    assert call.kind == call.SPAN_KIND_SERVER
    assert attributes(call) == {
        "rpc.system": "grpc",
        "rpc.service": SERVICE,
        "rpc.method": "CreateJob",
        "rpc.response.status_code": "OK",
        "jobs.correlation_id": "c-1",
    }
    batch = collector.wait_for("the batch's span", name="batch create", trace_id=trace_id)
    assert batch.parent_span_id == call.span_id
    assert [link.span_id for link in batch.links] == [call.span_id]
    transaction = collector.wait_for("the transaction's span", name="postgres", parent=batch.span_id)
    assert transaction.trace_id == call.trace_id
    assert kept_with(traced, job.job_id) == f"00-{trace_id}-{call.span_id.hex()}-01"
    assert {resource["service.name"] for resource in collector.resources} == {"jobs-service"}


def test_the_span_of_a_refusal_tells_code_and_reason(
    traced: Demo, collector: Collector, channel: grpc.Channel
) -> None:
    trace_id, _, metadata = new_trace()
    with refused("PERMISSION_DENIED", "DATASET_PERMISSION_DENIED"):
        create(Client(channel, traced.token(BOB)), metadata)
    call = collector.wait_for("the span", name=f"{SERVICE}/CreateJob", trace_id=trace_id)
    told = attributes(call)
    assert (told["rpc.response.status_code"], told["jobs.reason"]) == (
        "PERMISSION_DENIED",
        "DATASET_PERMISSION_DENIED",
    )
    # A refusal is the caller's affair, not a failure of the service.
    assert call.status.code == call.status.STATUS_CODE_UNSET


def test_a_list_has_its_transaction_as_a_part(
    traced: Demo, collector: Collector, channel: grpc.Channel
) -> None:
    trace_id, _, metadata = new_trace()
    Client(channel, traced.token(ALICE)).call("ListJobs", jobs_pb2.ListJobsRequest(), metadata=metadata)
    call = collector.wait_for("the call's span", name=f"{SERVICE}/ListJobs", trace_id=trace_id)
    assert collector.wait_for("the read's span", name="postgres", parent=call.span_id)


def test_a_batch_is_linked_to_all_its_calls(
    traced: Demo, collector: Collector, channel: grpc.Channel
) -> None:
    client, trace_id = Client(channel, traced.token(ALICE)), new_trace()[0]

    def traceparent(number: int) -> Metadata:
        return (("traceparent", f"00-{trace_id}-{number:016x}-01"),)

    def linked() -> bool:
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(lambda number: create(client, traceparent(number)), range(1, 65)))
        return any(len(batch.links) > 1 for batch in collector.spans(name="batch create", trace_id=trace_id))

    wait_until(linked, 30, "a batch with more than one call")
    batch = max(collector.spans(name="batch create", trace_id=trace_id), key=lambda span: len(span.links))
    wait_until(
        lambda: (
            {link.span_id for link in batch.links}
            <= {span.span_id for span in collector.spans(name=f"{SERVICE}/CreateJob", trace_id=trace_id)}
        ),
        20,
        "the spans of all its calls",
    )
    assert attributes(batch)["jobs.rows"] == len(batch.links)


@pytest.mark.parametrize(
    "header",
    ["", "x", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "ff-" + "1" * 32 + "-" + "1" * 16 + "-01"],
)
def test_a_malformed_traceparent_is_ignored(traced: Demo, channel: grpc.Channel, header: str) -> None:
    job = create(Client(channel, traced.token(ALICE)), (("traceparent", header),))
    kept = kept_with(traced, job.job_id)
    assert kept is not None
    assert "1" * 16 not in kept
    assert len(kept) == 55


def test_a_caller_that_does_not_record_is_not_recorded(
    traced: Demo, collector: Collector, channel: grpc.Channel
) -> None:
    client = Client(channel, traced.token(ALICE))
    unrecorded, _, metadata = new_trace("00")
    job = create(client, metadata)
    recorded, _, metadata = new_trace()
    create(client, metadata)
    collector.wait_for("a later span", name=f"{SERVICE}/CreateJob", trace_id=recorded)
    assert collector.spans(trace_id=unrecorded) == []
    kept = kept_with(traced, job.job_id)
    assert kept is not None
    assert kept.startswith(f"00-{unrecorded}-")
    assert kept.endswith("-00")


def test_spans_name_nobody(traced: Demo, collector: Collector, channel: grpc.Channel) -> None:
    trace_id, _, metadata = new_trace()
    create(Client(channel, traced.token(ALICE)), metadata)
    collector.wait_for("the span", name=f"{SERVICE}/CreateJob", trace_id=trace_id)
    everything = "".join(str(span) for span in collector.spans())
    assert "CreateJob" in everything
    for secret in (ALICE, BOB, traced.token(ALICE), "a.csv"):
        assert secret not in everything


def test_the_access_log_has_the_trace(traced: Demo, channel: grpc.Channel) -> None:
    trace_id, _, metadata = new_trace()
    create(Client(channel, traced.token(ALICE)), metadata)
    calls = traced.service.lines
    wait_until(lambda: [line for line in calls("call") if line.get("trace_id") == trace_id], 10, "the line")


def test_without_a_collector_the_callers_own_context_is_kept(
    world: World,
) -> None:
    dataset = world.dataset()
    alice = world.client(world.user(grants={dataset: Level.WRITE}))
    trace_id, span_id, metadata = new_trace()
    request = jobs_pb2.CreateJobRequest(dataset_id=dataset, run_type=jobs_pb2.RUN_TYPE_IMPORT)
    request.run_parameters.update({"file_path": "a.csv"})
    with_trace = alice.call("CreateJob", request, metadata=metadata).job.job_id
    without = alice.call("CreateJob", request).job.job_id
    kept: dict[str, str | None] = dict(
        world.sql.execute("SELECT job_id::text, traceparent FROM jobs").fetchall()
    )
    assert kept[with_trace] == f"00-{trace_id}-{span_id}-01"
    assert kept[without] is None


def test_a_repeated_request_is_the_same_whatever_trace_it_comes_in(
    traced: Demo, channel: grpc.Channel
) -> None:
    client, request_id = Client(channel, traced.token(ALICE)), str(uuid.uuid4())
    request = jobs_pb2.CreateJobRequest(
        dataset_id=1, run_type=jobs_pb2.RUN_TYPE_IMPORT, request_id=request_id
    )
    request.run_parameters.update({"file_path": "a.csv"})
    first = client.call("CreateJob", request, metadata=new_trace()[2])
    again = client.call("CreateJob", request, metadata=new_trace()[2])
    assert (first.replayed, again.replayed) == (False, True)
    assert first.job == again.job


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.parametrize("state", ["dead", "hanging"])
def test_a_collector_that_takes_nothing_is_told_once_and_holds_nothing_up(tmp_path: Path, state: str) -> None:
    with collecting() as collector:
        collector.hold()
        endpoint = collector.endpoint if state == "hanging" else f"http://127.0.0.1:{closed_port()}"
        small = {
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
            "OTEL_BSP_MAX_QUEUE_SIZE": "16",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8",
            **OFTEN,
        }
        with Demo(tmp_path, JOBS_OTLP_ENDPOINT=endpoint, **small) as demo:
            with grpc.insecure_channel(demo.target) as channel:
                client = Client(channel, demo.token(ALICE))
                lost = "traces can't be sent and are lost"

                def told() -> bool:
                    # Many more spans than the queue holds, and every call is answered.
                    for _ in range(20):
                        client.list()
                    return bool(demo.service.lines(lost))

                wait_until(told, 40, "the log's line")
                for _ in range(100):
                    client.list()
            assert demo.service.stop() == 0
            assert len(demo.service.lines(lost)) == 1
            loggers = {line["logger"] for line in demo.service.lines() if line["level"] != "INFO"}
            assert loggers == {"jobs_service.telemetry.otlp"}


@pytest.mark.timeout(20)
def test_the_end_does_not_wait_for_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    with collecting() as collector:
        collector.hold()
        tracer = OtlpTracer(collector.endpoint, "0")
        tracer.begin_call(f"/{SERVICE}/GetJob", None, "c").end_call("OK", "")
        closing = threading.Thread(target=tracer.close)
        closing.start()
        assert collector.asked.wait(10)
        # The collector holds on to what it was sent until the block ends.
        closing.join()
        assert collector.spans() == []


def test_opentelemetry_is_not_even_loaded_without_a_collector() -> None:
    script = "import sys, jobs_service.cli; sys.exit(any(n.startswith('opentelemetry') for n in sys.modules))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
