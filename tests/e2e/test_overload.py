"""More than the service can do: what is too much is refused, the rest is served, and memory stays bounded."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from jobs.v1 import jobs_pb2
from jobs_service.model.caller import Level
from jobs_service.transport.probe import ask_health
from jobs_service.transport.tokens import make_token
from tests.bench.generator import OK, Calls, Load, Measured
from tests.bench.http2 import header_block, message
from tests.bench.processes import resident_mib
from tests.conftest import service_settings
from tests.e2e.faults import writer_of_a_dataset
from tests.e2e.load import channel_to, family, outcome_of, postmaster, serving
from tests.e2e.test_faults import frozen
from tests.support.client import Client
from tests.support.postgres import PostgresServer, running_postgres
from tests.support.service import ServiceProcess, wait_until
from tests.support.world import KEY, World

OVERLOADED = "RESOURCE_EXHAUSTED OVERLOADED"
RESOURCE_EXHAUSTED = str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
SERVICE = "/jobs.v1.JobsService/"
MAX_CALLS = 64
SECONDS = 15.0
HEALTH_SECONDS = 5.0


class Busy:
    """A service with these settings, and who may create jobs in it."""

    def __init__(self, postgres: PostgresServer, folder: Path, **settings: str) -> None:
        self.url = postgres.new_database()
        user, self.dataset = writer_of_a_dataset(self.url)
        self.token = make_token(KEY, user.soeid)
        self.settings = service_settings(self.url, folder) | settings

    @contextmanager
    def serving(self, folder: Path) -> Iterator[ServiceProcess]:
        """Serve, and end in good order."""
        with serving(folder, self.settings) as service:
            yield service
            assert service.stop() == 0

    def request(self, **parameters: Any) -> jobs_pb2.CreateJobRequest:
        """A CreateJob."""
        request = jobs_pb2.CreateJobRequest(dataset_id=self.dataset, run_type=jobs_pb2.RUN_TYPE_IMPORT)
        request.run_parameters.update({"file_path": "landing/a.csv"} | parameters)
        return request

    def creates(self) -> Calls:
        """For the generator: each makes another job."""
        return Calls(SERVICE + "CreateJob", [message(self.request().SerializeToString())], self.token)

    def reader(self) -> str:
        """The token of another user, who may read what there is."""
        world = World(self.url)
        user = world.user(grants={self.dataset: Level.READ})
        world.close()
        return make_token(KEY, user.soeid)

    def block(self, target: str, rpc: str, token: str | None = None, *, without: str = "") -> bytes:
        """The headers of a call without a deadline, and without this one."""
        headers = Calls(SERVICE + rpc, [], token or self.token).headers(target)
        return header_block(
            [(name, value) for name, value in headers if name not in ("grpc-timeout", without)]
        )


class Watch:
    """Asks for health all the time, and notes how much memory the service has at most."""

    def __init__(self, service: ServiceProcess) -> None:
        self.answers: Counter[str] = Counter()
        self.slowest = 0.0
        self.before = self.most = resident_mib(service.process.pid)
        self._service = service
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            began = time.monotonic()
            self.answers[ask_health(self._service.target, "liveness", seconds=HEALTH_SECONDS)] += 1
            self.answers[ask_health(self._service.target, "", seconds=HEALTH_SECONDS)] += 1
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.most = max(self.most, resident_mib(self._service.process.pid))

    def __str__(self) -> str:
        return (
            f"memory {self.before:.0f} MiB, at most {self.most - self.before:+.0f} MiB;"
            f" health {dict(self.answers)}, slowest pair {self.slowest:.2f} s"
        )


def told(name: str, measured: Measured) -> str:
    """A line of figures."""
    refusals = len(measured.answered.get(RESOURCE_EXHAUSTED, ()))
    return (
        f"{name}: {measured.rate:,.0f} served/s (p50 {measured.percentile(50):.0f} ms),"
        f" {refusals / measured.seconds:,.0f} refused/s"
        f" (p50 {measured.percentile(50, RESOURCE_EXHAUSTED):.1f},"
        f" p99 {measured.percentile(99, RESOURCE_EXHAUSTED):.1f} ms)"
    )


@pytest.mark.long
@pytest.mark.parametrize("obedient", [True, False], ids=["as pushback says", "at once"])
def test_four_times_the_callers_that_are_taken_on_leave_it_as_useful_as_before(
    postgres_18: PostgresServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], obedient: bool
) -> None:
    busy = Busy(postgres_18, tmp_path, JOBS_MAX_CALLS=str(MAX_CALLS))
    with busy.serving(tmp_path) as service:
        with Load(service.target, busy.creates(), callers=MAX_CALLS // 2).running() as load:
            load.run(1)
            alone = load.run(4)
        crowd = Load(service.target, busy.creates(), callers=4 * MAX_CALLS, obedient=obedient)
        with crowd.running() as load, Watch(service) as watch:
            crowded = load.run(SECONDS)
        with Load(service.target, busy.creates(), callers=MAX_CALLS // 2).running() as load:
            after = load.run(2)
    with capsys.disabled():
        print(f"\n{told('alone', alone)}\n{told('crowded', crowded)}\n{told('after', after)}\n{watch}")
    assert set(alone.answered) == set(after.answered) == {OK}
    assert set(crowded.answered) == {OK, RESOURCE_EXHAUSTED}
    assert set(watch.answers) == {"SERVING"}
    assert watch.most - watch.before < 150
    # Who is refused and comes back at once takes the time of those who are served: no promise then.
    assert crowded.rate > (0.4 * alone.rate if obedient else 0)


def test_many_large_requests_at_once_take_bounded_memory_and_small_ones_are_served_after_them(
    postgres_18: PostgresServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    busy = Busy(postgres_18, tmp_path, JOBS_MAX_REQUEST_BYTES=str(4 * 1024 * 1024))
    # As large as they may be in JSON, and five times as large on the way.
    large = busy.request(rows=[1] * 110_000)
    assert large.ByteSize() > 1_000_000
    with busy.serving(tmp_path) as service, channel_to(service.target) as channel:
        client = Client(channel, busy.token)
        client.create(dataset_id=busy.dataset)
        channels = [channel_to(service.target) for _ in range(8)]
        clients = [Client(one, busy.token) for one in channels]
        with Watch(service) as watch:
            calls = [
                one.stub.CreateJob.future(large, metadata=one.metadata, timeout=60)
                for _ in range(8)
                for one in clients
            ]
            outcomes = Counter("OK" if call.exception() is None else outcome_of(call) for call in calls)
        for one in channels:
            one.close()
        client.create(dataset_id=busy.dataset)
    with capsys.disabled():
        print(f"\n64 requests of {large.ByteSize():,} bytes: {dict(outcomes)}; {watch}")
    assert set(outcomes) == {"OK", OVERLOADED}
    assert set(watch.answers) == {"SERVING"}
    # 64 of them decoded would be more than a GiB.
    assert watch.most - watch.before < 400


def test_a_frozen_database_fills_the_queue_and_calls_go_on_when_it_is_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_postgres(tmp_path / "postgres") as postgres:
        busy = Busy(postgres, tmp_path, JOBS_MAX_WAITING="20", JOBS_BATCH_SECONDS="1", JOBS_BATCH_ROWS="5")
        with busy.serving(tmp_path) as service, channel_to(service.target) as channel:
            client = Client(channel, busy.token)
            client.create(dataset_id=busy.dataset)
            pids = family(postmaster({"JOBS_DATA_DIR": str(tmp_path / "postgres")}))
            with Watch(service) as watch, frozen(pids):
                calls = [
                    client.stub.CreateJob.future(busy.request(), metadata=client.metadata, timeout=60)
                    for _ in range(60)
                ]
                outcomes = Counter("OK" if call.exception() is None else outcome_of(call) for call in calls)
            wait_until(lambda: ask_health(service.target, "", seconds=5) == "SERVING", 30, "ready")
            client.create(dataset_id=busy.dataset)
    with capsys.disabled():
        print(f"\n60 creates on a frozen database: {dict(outcomes)}; {watch}")
    assert set(outcomes) == {OVERLOADED, "UNAVAILABLE DATABASE_UNAVAILABLE"}
    assert set(watch.answers) <= {"SERVING", "NOT_SERVING"}
