"""Owners, workers and the sweep at the same moment, on two replicas: one wins, all are told the truth."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from jobs.v1 import jobs_pb2, workers_pb2
from jobs_service.model.caller import Level
from tests.support.client import Client, RichError, rich_error
from tests.support.postgres import PostgresServer
from tests.support.service import wait_until
from tests.support.work_rows import (
    age_leases,
    empty_queue,
    one,
    rows_of,
    types_of_events,
    worlds_of_replicas,
)
from tests.support.worker import (
    NO_BACKOFF,
    Lease,
    Worker,
    completion,
    failure,
    giving_back,
    lease_of,
    new_service,
    new_worker,
)
from tests.support.world import World

ROUNDS = 500
FEWER = 100


@pytest.fixture(scope="module")
def replicas(postgres_18: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[World]]:
    """Two services whose jobs nobody else claims."""
    with worlds_of_replicas(postgres_18.new_database(), tmp_path_factory.mktemp("races")) as worlds:
        yield worlds


@dataclass(frozen=True)
class Stage:
    """A data set; its owner and a worker, each with a connection to each replica."""

    world: World
    dataset: int
    owners: list[Client]
    workers: list[Worker]

    def jobs(self, number: int, **fields: Any) -> list[str]:
        """Create so many jobs that are tried again at once."""
        request = {"dataset_id": self.dataset, "retry_policy": NO_BACKOFF} | fields
        with ThreadPoolExecutor(8) as threads:
            made = threads.map(lambda n: self.owners[n % 2].create(**request), range(number))
            return [created.job.job_id for created in made]

    def taken(self, number: int) -> list[Lease]:
        """So many jobs, claimed."""
        ids = set(self.jobs(number))
        leases: list[Lease] = []
        while len(leases) < number:
            leases += [lease_of(claim) for claim in self.workers[0].claims(100)]
        assert {lease.job_id for lease in leases} == ids
        return leases


@pytest.fixture
def stage(replicas: list[World]) -> Stage:
    empty_queue(replicas[0].sql)
    dataset = replicas[0].dataset()
    user = replicas[0].user(grants={dataset: Level.WRITE})
    service = new_service(replicas[0])
    owners = [world.client(user) for world in replicas]
    return Stage(replicas[0], dataset, owners, [new_worker(world, service) for world in replicas])


def race(stage: Stage, number: int, lease: Lease, rpc: str, request: Any) -> tuple[Any, Any]:
    """Cancel and the worker's call at the same moment; what each was answered, refusals as RichError.

    The number of the round says who is sent first, and to which replica.
    """
    owner, worker = stage.owners[number % 2], stage.workers[number // 2 % 2]
    cancel = jobs_pb2.CancelJobRequest(job_id=lease.job_id, reason="a race")
    senders: list[Callable[[], Any]] = [
        lambda: owner.stub.CancelJob.future(cancel, metadata=owner.metadata, timeout=30),
        lambda: getattr(worker.stub, rpc).future(request, metadata=worker.metadata, timeout=30),
    ]
    order = (0, 1) if number // 4 % 2 else (1, 0)
    futures = {which: senders[which]() for which in order}
    return answered(futures[0]), answered(futures[1])


def answered(future: Any) -> Any:
    """What a call answered, a refusal as a RichError."""
    try:
        return future.result()
    except grpc.RpcError as error:
        return rich_error(error)


def require_told(refusal: Any, reason: str, **metadata: str) -> None:
    """AssertionError unless it was refused, for this reason."""
    assert isinstance(refusal, RichError), refusal
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", reason)
    assert refusal.metadata.items() >= metadata.items()


def require_ended(stage: Stage, lease: Lease, last: str, *before: str) -> dict[str, list[Any]]:
    """AssertionError unless the job's history is this, each change once, and no claim is left."""
    rows = rows_of(stage.world.sql, lease.job_id)
    assert types_of_events(stage.world.sql, lease.job_id) == ["CREATED", "CLAIMED", *before, last]
    assert rows["jobs"][0]["version"] == 3 + len(before)
    assert (rows["job_leases"], rows["job_queue"], len(rows["job_attempts"])) == ([], [], 1)
    return rows


CERTAIN: dict[str, tuple[str, Callable[[Lease], Any], str]] = {
    "complete": ("CompleteJob", completion, "COMPLETED"),
    "fail for good": ("FailJob", lambda lease: failure(lease, non_retryable=True), "FAILED"),
}


@pytest.mark.parametrize(
    ("kind", "rounds"),
    [
        pytest.param("complete", ROUNDS, marks=pytest.mark.long),
        ("complete", FEWER),
        ("fail for good", FEWER),
    ],
)
def test_of_a_cancel_and_a_result_exactly_one_wins_and_the_other_is_told_so(
    stage: Stage, kind: str, rounds: int
) -> None:
    rpc, request, status = CERTAIN[kind]
    winners: Counter[str] = Counter()
    for number, lease in enumerate(stage.taken(rounds)):
        cancel, result = race(stage, number, lease, rpc, request(lease))
        won = "CANCELLED" if not isinstance(cancel, RichError) else status
        told = {"job_id": lease.job_id, "status": won}
        if won == "CANCELLED":
            require_told(result, "LEASE_LOST", **told, attempt="1")
            found = cancel.job
        else:
            require_told(cancel, "JOB_NOT_CANCELLABLE", **told)
            assert not isinstance(result, RichError), result
            found = result.job
        assert stage.owners[0].get(lease.job_id) == found
        rows = require_ended(stage, lease, won)
        assert rows["jobs"][0]["status"] == rows["job_attempts"][0]["outcome"] == won
        winners[won] += 1
    # Or it was no race.
    assert len(winners) == 2, winners


GIVING_UP: dict[str, tuple[str, Callable[[Lease], Any], str, str]] = {
    "fail": ("FailJob", failure, "ATTEMPT_FAILED", "FAILED"),
    "release": ("ReleaseJob", giving_back, "RELEASED", "RELEASED"),
}


@pytest.mark.parametrize("kind", GIVING_UP)
def test_a_cancel_wins_over_a_worker_that_gives_up_whoever_comes_first(stage: Stage, kind: str) -> None:
    rpc, request, event, outcome = GIVING_UP[kind]
    orders: Counter[bool] = Counter()
    for number, lease in enumerate(stage.taken(FEWER)):
        cancel, given_up = race(stage, number, lease, rpc, request(lease))
        assert cancel.job.status == jobs_pb2.JOB_STATUS_CANCELLED
        cancelled_first = isinstance(given_up, RichError)
        if cancelled_first:
            require_told(given_up, "LEASE_LOST", job_id=lease.job_id, status="CANCELLED")
            rows = require_ended(stage, lease, "CANCELLED")
        else:
            rows = require_ended(stage, lease, "CANCELLED", event)
        assert rows["job_attempts"][0]["outcome"] == ("CANCELLED" if cancelled_first else outcome)
        assert stage.owners[0].get(lease.job_id) == cancel.job
        orders[cancelled_first] += 1
    assert len(orders) == 2, orders


def test_a_heartbeat_beside_a_cancel_is_renewed_before_or_told_after_and_writes_nothing_then(
    stage: Stage,
) -> None:
    for number, lease in enumerate(stage.taken(FEWER)):
        beat = workers_pb2.Heartbeat(**lease._asdict(), progress=jobs_pb2.JobProgress(percent=50))
        request = workers_pb2.HeartbeatJobsRequest(leases=[beat])
        cancel, told = race(stage, number, lease, "HeartbeatJobs", request)
        renewed = told.results[0].WhichOneof("result") == "lease_expire_time"
        assert renewed or told.results[0].cancel_requested
        # Progress is left out where the cancel holds the job already.
        reported = cancel.job.HasField("progress")
        assert renewed or not reported
        assert cancel.job.version == 3 + reported
        assert stage.owners[0].get(lease.job_id) == cancel.job
        assert stage.workers[0].heartbeat(lease) == ["cancel_requested"]


def test_a_cancelled_job_is_never_rescued_though_its_lease_expires_at_the_same_moment(stage: Stage) -> None:
    leases = stage.taken(FEWER)
    ids = [lease.job_id for lease in leases]
    with ThreadPoolExecutor(8) as threads:
        age_leases(stage.world.sql, ids)
        cancelled = list(threads.map(lambda pair: stage.owners[pair[0] % 2].cancel(pair[1]), enumerate(ids)))
    left = "SELECT count(*) FROM job_leases WHERE job_id = ANY(%s::uuid[])"
    assert one(stage.world.sql, left, ids) == 0
    for lease, job in zip(leases, cancelled, strict=True):
        swept = "LEASE_EXPIRED" in types_of_events(stage.world.sql, lease.job_id)
        rows = require_ended(stage, lease, "CANCELLED", *["LEASE_EXPIRED"] * swept)
        assert rows["job_attempts"][0]["outcome"] == ("LEASE_EXPIRED" if swept else "CANCELLED")
        assert stage.owners[0].get(lease.job_id) == job


def test_a_result_beside_the_sweep_counts_or_is_refused_and_the_job_goes_on(stage: Stage) -> None:
    leases = stage.taken(FEWER)
    age_leases(stage.world.sql, [lease.job_id for lease in leases])
    with ThreadPoolExecutor(8) as threads:
        futures = list(threads.map(lambda pair: result_of(stage, *pair), enumerate(leases)))
    swept = [lease for lease, done in zip(leases, futures, strict=True) if isinstance(done, RichError)]
    for lease, done in zip(leases, futures, strict=True):
        if isinstance(done, RichError):
            require_told(done, "LEASE_LOST", job_id=lease.job_id, status="PENDING", attempt="1")
        else:
            require_ended(stage, lease, "COMPLETED")
    again: list[Lease] = []

    def all_are_taken_again() -> bool:
        again.extend(map(lease_of, stage.workers[0].claims(100)))
        return len(again) >= len(swept)

    wait_until(all_are_taken_again, 15, "the swept jobs are claimed again")
    assert {lease.job_id for lease in again} == {lease.job_id for lease in swept}


def result_of(stage: Stage, number: int, lease: Lease) -> Any:
    """CompleteJob."""
    worker = stage.workers[number % 2]
    return answered(worker.stub.CompleteJob.future(completion(lease), metadata=worker.metadata, timeout=30))


def test_of_many_workers_at_once_each_job_goes_to_one(stage: Stage) -> None:
    ids = stage.jobs(400)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda number: all_claims(stage.workers[number % 2]), range(8)))
    claimed = [job_id for of_one in found for job_id in of_one]
    assert len(claimed) == len(set(claimed))
    assert set(claimed) == set(ids)
    running = "SELECT count(*) FROM job_leases WHERE job_id = ANY(%s::uuid[])"
    assert one(stage.world.sql, running, ids) == len(ids)


def all_claims(worker: Worker) -> list[str]:
    """The ids of all that this worker gets, seven at a time, until there is nothing."""
    ids: list[str] = []
    empty = 0
    # Somebody else may hold the rows of a moment: nothing must be found twice before it is believed.
    while empty < 3:
        found = [claim.job.job_id for claim in worker.claims(7)]
        empty = 0 if found else empty + 1
        ids += found
    return ids
