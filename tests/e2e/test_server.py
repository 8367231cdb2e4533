"""The server around the RPCs: health, reflection, access log, deadlines, connections, and its end."""

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.struct_pb2 import Struct, Value
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from jobs.v1 import jobs_pb2, jobs_pb2_grpc
from tests.e2e.demo import ALICE, BOB, PROGRAM, Demo
from tests.support.client import Client, Metadata, refused
from tests.support.judge import METHODS
from tests.support.service import wait_until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
JOBS = "jobs.v1.JobsService"
ACCESS = "jobs.v1.AccessService"
WORKERS = "jobs.v1.WorkersService"
REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
NOBODYS_JOB = "01900000-0000-7000-8000-000000000000"
PARAMETERS = Struct(fields={"file_path": Value(string_value="landing/a.csv")})
REQUESTS = {
    "CreateJob": jobs_pb2.CreateJobRequest(
        dataset_id=1, run_type=jobs_pb2.RUN_TYPE_IMPORT, run_parameters=PARAMETERS
    ),
    "ListJobs": jobs_pb2.ListJobsRequest(),
    "GetJob": jobs_pb2.GetJobRequest(job_id=NOBODYS_JOB),
    "GetJobStatus": jobs_pb2.GetJobStatusRequest(job_id=NOBODYS_JOB),
    "CancelJob": jobs_pb2.CancelJobRequest(job_id=NOBODYS_JOB),
}


@pytest.fixture
def channel(demo: Demo) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(demo.target) as channel:
        yield channel


@pytest.fixture
def alice(demo: Demo, channel: grpc.Channel) -> Client:
    return Client(channel, demo.token(ALICE))


def check(channel: grpc.Channel, service: str) -> Any:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status


def log_line(demo: Demo, correlation_id: str) -> dict[str, Any]:
    """The one line of the access log about a call."""

    def found() -> list[dict[str, Any]]:
        calls = demo.service.lines("call")
        return [line for line in calls if line["correlation_id"] == correlation_id]

    (line,) = wait_until(found, 10, "the access log's line")
    return dict(line)


def correlated() -> tuple[str, Metadata]:
    correlation_id = str(uuid.uuid4())
    return correlation_id, (("x-correlation-id", correlation_id),)


@pytest.mark.parametrize("service", ["", JOBS, WORKERS, ACCESS, "liveness"])
def test_health_is_told_without_credentials(channel: grpc.Channel, service: str) -> None:
    assert check(channel, service) == SERVING


def test_the_health_of_an_unknown_service_is_not_found(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        check(channel, "jobs.v1.Unknown")
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def reflect(channel: grpc.Channel, version: str, **request: Any) -> Any:
    method = channel.stream_stream(
        f"/{version}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return next(method(iter([reflection_pb2.ServerReflectionRequest(**request)]), timeout=10))


@pytest.mark.parametrize("version", REFLECTION)
def test_reflection_lists_and_describes_everything(channel: grpc.Channel, version: str) -> None:
    answer = reflect(channel, version, list_services="")
    services = {service.name for service in answer.list_services_response.service}
    assert services == {JOBS, WORKERS, ACCESS, "grpc.health.v1.Health", *REFLECTION}
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(data: bytes) -> None:
        file = descriptor_pb2.FileDescriptorProto.FromString(data)
        for needed in file.dependency:
            if needed not in added:
                described = reflect(channel, version, file_by_filename=needed).file_descriptor_response
                add(described.file_descriptor_proto[0])
        if file.name not in added:
            added.add(file.name)
            pool.Add(file)

    for service in services:
        described = reflect(channel, version, file_containing_symbol=service).file_descriptor_response
        add(described.file_descriptor_proto[0])
    for service in services:
        assert pool.FindServiceByName(service).methods
    assert [method.name for method in pool.FindServiceByName(JOBS).methods] == list(METHODS)


def test_the_log_tells_who_called_what_and_how_it_ended(demo: Demo, alice: Client) -> None:
    correlation_id, metadata = correlated()
    alice.call("ListJobs", jobs_pb2.ListJobsRequest(), metadata=metadata)
    line = log_line(demo, correlation_id)
    assert line.pop("duration_ms") > 0
    assert line.pop("peer").startswith("ipv4:127.0.0.1:")
    assert line.pop("time")
    assert line == {
        "level": "INFO",
        "logger": "jobs_service.access",
        "message": "call",
        "method": f"/{JOBS}/ListJobs",
        "caller": ALICE,
        "on_behalf_of": None,
        "code": "OK",
        "reason": None,
        "correlation_id": correlation_id,
    }


def test_the_log_tells_for_whom_a_program_called(demo: Demo, channel: grpc.Channel) -> None:
    correlation_id, metadata = correlated()
    Client(channel, demo.token(PROGRAM), on_behalf_of=BOB).call(
        "ListJobs", jobs_pb2.ListJobsRequest(), metadata=metadata
    )
    line = log_line(demo, correlation_id)
    assert (line["caller"], line["on_behalf_of"], line["code"]) == (PROGRAM, BOB, "OK")


def test_the_log_tells_refusals_with_their_reasons(demo: Demo, channel: grpc.Channel) -> None:
    expected = [
        (None, "UNAUTHENTICATED", "CREDENTIALS_MISSING", "CreateJob"),
        (demo.token("us99999"), "UNAUTHENTICATED", "CALLER_UNKNOWN", "CreateJob"),
        (demo.token(BOB), "PERMISSION_DENIED", "DATASET_PERMISSION_DENIED", "CreateJob"),
        (demo.token(BOB), "NOT_FOUND", "JOB_NOT_FOUND", "GetJob"),
    ]
    for token, code, reason, rpc in expected:
        correlation_id, metadata = correlated()
        with refused(code, reason):
            Client(channel, token).call(rpc, REQUESTS[rpc], metadata=metadata)
        line = log_line(demo, correlation_id)
        assert (line["method"], line["code"], line["reason"]) == (f"/{JOBS}/{rpc}", code, reason)


def test_neither_tokens_nor_payloads_get_into_the_log(demo: Demo, alice: Client) -> None:
    alice.create(description="mark-in-text", run_parameters={"file_path": "mark-in-parameters"})
    with refused("INVALID_ARGUMENT", "INVALID_FIELD"):
        alice.create(external_id="mark-in-text" * 20, run_parameters={"other": "mark-in-parameters"})
    correlation_id, metadata = correlated()
    alice.call("ListJobs", jobs_pb2.ListJobsRequest(), metadata=metadata)
    log_line(demo, correlation_id)
    log = demo.service.log_file.read_text() + demo.service.out_file.read_text()
    assert "mark-in-" not in log
    assert demo.token(ALICE) not in log
    assert demo.token(ALICE).rpartition(".")[2] not in log


@pytest.mark.parametrize("rpc", ["ListJobs", "GetJob"])
def test_the_correlation_id_comes_back(demo: Demo, channel: grpc.Channel, rpc: str) -> None:
    def given_back(metadata: Metadata) -> list[str | bytes]:
        client = Client(channel, demo.token(ALICE))
        call = getattr(client.stub, rpc).future(
            REQUESTS[rpc], metadata=client.metadata + metadata, timeout=10
        )
        call.exception()  # waits, whether it succeeds or is refused
        return [text for key, text in call.trailing_metadata() if key == "x-correlation-id"]

    correlation_id, metadata = correlated()
    assert given_back(metadata) == [correlation_id]
    (made,) = given_back(())
    assert log_line(demo, str(made))["method"] == f"/{JOBS}/{rpc}"


@pytest.mark.parametrize("rpc", REQUESTS)
def test_a_deadline_that_is_nearly_over_is_answered_at_once(demo: Demo, alice: Client, rpc: str) -> None:
    for seconds in (0.0, 0.0001, 0.001):
        # No error is fine too: the service may be quick enough. That it hangs is not.
        call = getattr(alice.stub, rpc).future(REQUESTS[rpc], metadata=alice.metadata, timeout=seconds)
        error = call.exception(timeout=5)
        codes = {"DEADLINE_EXCEEDED"} if seconds < 0.001 else {"DEADLINE_EXCEEDED", "NOT_FOUND"}
        assert error is None or error.code().name in codes
        assert error is not None or seconds == 0.001
    assert alice.list() is not None


@contextmanager
def held(demo: Demo, job_id: str) -> Iterator[psycopg.Connection]:
    """A job's row, held by a transaction of somebody else until the block ends."""
    with demo.sql() as other, demo.sql() as watching, other.transaction():
        other.execute("SELECT FROM jobs WHERE job_id = %s FOR UPDATE", (job_id,))
        yield watching


def waits_for_a_row(watching: psycopg.Connection) -> Callable[[], bool]:
    def waits() -> bool:
        row = watching.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
        return row is not None and row[0] > 0

    return waits


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A service that waits long for rows and hides its description."""
    folder = tmp_path_factory.mktemp("patient")
    with Demo(folder, JOBS_LOCK_SECONDS="30", JOBS_BATCH_SECONDS="30", JOBS_REFLECTION="off") as running:
        yield running


@pytest.mark.parametrize("version", REFLECTION)
def test_reflection_can_be_hidden(patient: Demo, version: str) -> None:
    with grpc.insecure_channel(patient.target) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            reflect(channel, version, list_services="")
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert check(channel, "") == SERVING


def test_a_call_whose_deadline_passes_in_the_queue_is_never_run(patient: Demo) -> None:
    with grpc.insecure_channel(patient.target) as channel, ThreadPoolExecutor(1) as thread:
        alice = Client(channel, patient.token(ALICE))
        first, second = alice.create().job.job_id, alice.create().job.job_id
        with held(patient, first) as watching:
            cancelling = thread.submit(alice.cancel, first)
            wait_until(waits_for_a_row(watching), 10, "the first cancel waits")
            request = jobs_pb2.CancelJobRequest(job_id=second)
            with pytest.raises(grpc.RpcError) as caught:
                alice.call("CancelJob", request, timeout=0.2)
            assert isinstance(caught.value, grpc.Call)
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert cancelling.result(30).status == jobs_pb2.JOB_STATUS_CANCELLED
        # Batches of cancels go one after the other: when this one is done, so is any that was before.
        alice.cancel(alice.create().job.job_id)
        assert alice.get(second).status == jobs_pb2.JOB_STATUS_PENDING


def test_connections_that_got_too_old_are_closed_without_an_error(tmp_path: Path) -> None:
    with Demo(tmp_path, JOBS_MAX_CONNECTION_AGE_SECONDS="1") as demo:
        with grpc.insecure_channel(demo.target) as channel:
            client = Client(channel, demo.token(ALICE))

            def connections() -> bool:
                with ThreadPoolExecutor(4) as threads:
                    for page in [threads.submit(client.list) for _ in range(20)]:
                        assert page.result(10) is not None
                return len({line["peer"] for line in demo.service.lines("call")}) >= 3

            wait_until(connections, 20, "three connections, one after the other")
        assert {line["code"] for line in demo.service.lines("call")} == {"OK"}


def watched(channel: grpc.Channel, service: str) -> Any:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=60)


def test_a_drain_tells_the_watchers_first_and_serves_on_until_its_delay_is_over(tmp_path: Path) -> None:
    settings = {"JOBS_DRAIN_DELAY_SECONDS": "2", "JOBS_DRAIN_SECONDS": "600"}
    with Demo(tmp_path, **settings) as demo, grpc.insecure_channel(demo.target) as channel:
        client = Client(channel, demo.token(ALICE))
        watches = [watched(channel, service) for service in ("", JOBS)]
        assert [next(watch).status for watch in watches] == [SERVING, SERVING]
        demo.service.process.terminate()
        assert [next(watch).status for watch in watches] == [NOT_SERVING, NOT_SERVING]
        assert [check(channel, service) for service in ("", JOBS, "liveness")] == [
            *(NOT_SERVING, NOT_SERVING, SERVING)
        ]
        assert client.create().job.job_id
        # The watchers are still there: nobody has to leave before the service can end.
        assert demo.service.process.wait(30) == 0


def test_a_call_in_progress_gets_its_answer_while_new_ones_are_refused(tmp_path: Path) -> None:
    settings = {"JOBS_LOCK_SECONDS": "30", "JOBS_BATCH_SECONDS": "30"}
    with Demo(tmp_path, **settings) as demo, grpc.insecure_channel(demo.target) as channel:
        client, ended = Client(channel, demo.token(ALICE)), threading.Event()
        job_id = client.create().job.job_id
        with held(demo, job_id) as watching:
            call = jobs_pb2_grpc.JobsServiceStub(channel).CancelJob.future(
                jobs_pb2.CancelJobRequest(job_id=job_id), metadata=client.metadata, timeout=30
            )
            call.add_done_callback(lambda _: ended.set())
            wait_until(waits_for_a_row(watching), 10, "the cancel waits")
            demo.service.process.terminate()
            wait_until(lambda: is_refused(demo), 10, "new calls are refused")
            assert not ended.is_set()
        assert call.result(30).job.status == jobs_pb2.JOB_STATUS_CANCELLED
        assert demo.service.process.wait(30) == 0
        assert demo.service.lines("draining")


def is_refused(demo: Demo) -> bool:
    """Whether a caller that comes new gets UNAVAILABLE."""
    with grpc.insecure_channel(demo.target) as channel:
        try:
            check(channel, "liveness")
        except grpc.RpcError as error:
            return isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.UNAVAILABLE
    return False
