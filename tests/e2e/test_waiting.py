"""Workers that wait: who wakes them, and what becomes of them at a deadline, a limit, a drain."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.v1 import jobs_pb2, workers_pb2
from jobs_service.model.caller import Level
from jobs_service.transport.waiters import CHECK_SECONDS, PROBE_SECONDS
from tests.conftest import service_settings
from tests.e2e.load import serving
from tests.support.client import Client, WorkerClient, lease_of, refused
from tests.support.pgbouncer import running_pgbouncer
from tests.support.postgres import PostgresServer
from tests.support.scrape import scrape
from tests.support.service import ServiceProcess, wait_until
from tests.support.world import World

LONG = timedelta(seconds=60)
LEASE = timedelta(minutes=10)


class Side:
    """One replica, somebody who makes jobs there, and workers that call it."""

    def __init__(self, url: str, service: ServiceProcess, threads: ThreadPoolExecutor) -> None:
        self.service = service
        self.world = World(url, service.target)
        self._threads = threads

    @property
    def waiting(self) -> int:
        """How many calls wait there."""
        return int(scrape(self.service).value("jobs_waiting_claims"))

    def claims(self, worker: WorkerClient, count: int = 1, **fields: Any) -> "list[Future[Any]]":
        """Claims that wait; they do when this returns."""
        return self._waits(lambda: worker.claim(wait_timeout=LONG, timeout=90, **fields), count)

    def heartbeats(self, worker: WorkerClient, *leases: Any, **fields: Any) -> "Future[Any]":
        """A heartbeat that waits; it does when this returns."""
        wanted: dict[str, Any] = {"lease_duration": LEASE, "wait_timeout": LONG, "timeout": 90} | fields
        return self._waits(lambda: worker.heartbeat(*leases, **wanted), 1)[0]

    def _waits(self, call: Callable[[], Any], count: int) -> "list[Future[Any]]":
        before = self.waiting
        calls = [self._threads.submit(call) for _ in range(count)]
        wait_until(lambda: self.waiting >= before + count, 20, f"{count} more calls wait")
        return calls


class Replicas:
    """Two replicas on one database, and a data set to make jobs on."""

    def __init__(self, first: Side, second: Side) -> None:
        self.first, self.second = first, second
        self.dataset = first.world.dataset()
        user = first.world.user(grants={self.dataset: Level.WRITE})
        self.makers: list[Client] = [side.world.client(user) for side in (first, second)]
        worker = first.world.service_user()
        self.workers = [side.world.worker(user=worker) for side in (first, second)]

    def create(self, replica: int = 0, **fields: Any) -> str:
        """Make a job there; returns its id."""
        job: jobs_pb2.Job = self.makers[replica].create(dataset_id=self.dataset, **fields).job
        return job.job_id

    def claimed(self) -> workers_pb2.Claim:
        """A new job, claimed at the first."""
        self.create()
        return self.workers[0].claim_one(lease_duration=LEASE)


@contextmanager
def replicas(url: str, folder: Path, **settings: str) -> Iterator[Replicas]:
    """Run two of them with these settings."""
    settings = service_settings(url, folder) | {"JOBS_METRICS_LISTEN": "127.0.0.1:0"} | settings
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(60))
        services = [stack.enter_context(serving(folder, settings)) for _ in range(2)]
        direct = settings.get("TESTS_DIRECT", url)
        sides = [Side(direct, service, threads) for service in services]
        for side in sides:
            stack.callback(side.world.close)
        yield Replicas(*sides)
        # Whatever still waits gets its answer now.
        assert [service.stop() for service in services] == [0, 0]


@pytest.fixture(scope="module")
def shared(postgres_18: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """The same for tests that leave no job ready."""
    with replicas(postgres_18.new_database(), tmp_path_factory.mktemp("replicas")) as both:
        yield both


def found(call: "Future[Any]") -> list[str]:
    """The jobs that a claim got in the end."""
    return [claim.job.job_id for claim in call.result(60).claims]


@pytest.mark.parametrize("replica", [0, 1], ids=["the same replica", "another replica"])
def test_a_claim_that_waits_gets_a_job_that_is_made_at(shared: Replicas, replica: int) -> None:
    (claim,) = shared.first.claims(shared.workers[0])
    made = shared.create(replica)
    assert found(claim) == [made]


@pytest.mark.parametrize("replica", [0, 1], ids=["the same replica", "another replica"])
def test_a_claim_that_waits_gets_a_job_that_is_given_back_at(shared: Replicas, replica: int) -> None:
    lease = shared.claimed()
    (claim,) = shared.first.claims(shared.workers[0])
    shared.workers[replica].release(lease)
    assert found(claim) == [lease.job.job_id]


@pytest.mark.parametrize("replica", [0, 1], ids=["the same replica", "another replica"])
def test_a_heartbeat_that_waits_is_told_of_a_cancel_at(shared: Replicas, replica: int) -> None:
    leases = [shared.claimed() for _ in range(3)]
    beat = shared.first.heartbeats(shared.workers[0], *leases)
    shared.makers[replica].cancel(leases[1].job.job_id)
    told = [result.WhichOneof("result") for result in beat.result(60)]
    assert told == ["lease_expire_time", "cancel_requested", "lease_expire_time"]


def test_a_heartbeat_with_a_lease_that_is_lost_already_does_not_wait(shared: Replicas) -> None:
    lease, lost = shared.claimed(), shared.claimed()
    shared.workers[0].complete(lost)
    results = shared.workers[0].heartbeat(lease, lost, wait_timeout=LONG, timeout=15)
    assert [result.WhichOneof("result") for result in results] == ["lease_expire_time", "lost"]


def test_a_heartbeat_waits_no_longer_than_a_third_of_its_lease(shared: Replicas) -> None:
    lease = shared.claimed()
    (result,) = shared.workers[0].heartbeat(
        lease, lease_duration=timedelta(seconds=6), wait_timeout=LONG, timeout=15
    )
    assert result.HasField("lease_expire_time")


def test_every_waiting_claim_gets_one_of_many_jobs_that_are_made_at_once(shared: Replicas) -> None:
    claims = [
        *shared.first.claims(shared.workers[0], 20),
        *shared.second.claims(shared.workers[1], 20),
    ]
    made = [shared.create(number % 2) for number in range(40)]
    assert sorted(job_id for claim in claims for job_id in found(claim)) == sorted(made)


def test_a_claim_that_waits_ends_before_its_callers_deadline(shared: Replicas) -> None:
    assert not shared.workers[0].claim(wait_timeout=LONG, timeout=3).claims
    assert not shared.workers[0].claim(wait_timeout=timedelta(milliseconds=50)).claims


def test_a_drain_answers_who_waits(postgres_18: PostgresServer, tmp_path: Path) -> None:
    with replicas(postgres_18.new_database(), tmp_path) as both:
        lease = both.claimed()
        claims = both.first.claims(both.workers[0], 5)
        beat = both.first.heartbeats(both.workers[0], lease)
        both.first.service.process.send_signal(signal.SIGTERM)
        assert [found(claim) for claim in claims] == [[]] * 5
        assert [result.WhichOneof("result") for result in beat.result(60)] == ["lease_expire_time"]


def test_more_than_may_wait_are_refused_and_take_no_place_from_others(
    postgres_18: PostgresServer, tmp_path: Path
) -> None:
    limits = {"JOBS_MAX_WAITERS": "6", "JOBS_MAX_CALLS": "2"}
    with replicas(postgres_18.new_database(), tmp_path, **limits) as both:
        lease = both.claimed()
        for _ in range(5):
            both.first.claims(both.workers[0])
        beat = both.first.heartbeats(both.workers[0], lease)
        with refused("RESOURCE_EXHAUSTED", "TOO_MANY_WAITERS") as refusal:
            both.workers[0].claim(wait_timeout=LONG)
        assert refusal.it.metadata == {"limit": "6"}
        with refused("RESOURCE_EXHAUSTED", "TOO_MANY_WAITERS"):
            both.workers[0].heartbeat(lease, wait_timeout=LONG)
        # What waits for nothing is served all the same.
        assert both.workers[0].heartbeat(lease)[0].HasField("lease_expire_time")
        assert both.makers[0].cancel(lease.job.job_id).status == jobs_pb2.JOB_STATUS_CANCELLED
        assert beat.result(60)[0].cancel_requested


def test_without_listen_who_waits_looks_by_himself(postgres_18: PostgresServer, tmp_path: Path) -> None:
    url = postgres_18.new_database()
    with running_pgbouncer(url) as pgbouncer:
        nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
        settings = {"JOBS_DATABASE_URL": pgbouncer.url, "JOBS_DIRECT_DATABASE_URL": nowhere}
        with replicas(url, tmp_path, **settings) as both:
            assert both.first.service.lines("other replicas are not heard")
            (claim,) = both.first.claims(both.workers[0])
            made = both.create(1)
            assert found(claim) == [made]
            lease = both.claimed()
            beat = both.first.heartbeats(both.workers[0], lease)
            both.makers[1].cancel(lease.job.job_id)
            assert beat.result(60)[0].cancel_requested


@pytest.mark.long
def test_how_long_a_job_waits_for_a_worker_that_waits_for_it(
    shared: Replicas, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = []
    for name, replica in (("the same replica", 0), ("another replica", 1)):
        seconds = []
        for _ in range(100):
            (claim,) = shared.first.claims(shared.workers[0])
            began = time.monotonic()
            job_id = shared.create(replica)
            assert found(claim) == [job_id]
            seconds.append(time.monotonic() - began)
            (done,) = shared.workers[0].finish({"complete": lease_of(claim.result().claims[0])})
            assert done.job.status == jobs_pb2.JOB_STATUS_COMPLETED
        seconds.sort()
        figures.append(f"{name}: median {seconds[50] * 1000:.1f} ms, p99 {seconds[98] * 1000:.1f} ms")
    with capsys.disabled():
        print("\nfrom the call of CreateJob to the answer of ClaimJobs,", "; ".join(figures))
        print(
            f"without news: within {PROBE_SECONDS} s, heartbeats within {CHECK_SECONDS} s, and a fifth more"
        )
