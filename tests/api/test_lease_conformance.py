"""The token fences: whoever lost a job writes nothing to it, by whatever RPC, whatever has become of the job.

Expiries are real: leases are made old in the database, and the service's own sweep takes the jobs back.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import uuid4

import grpc
import pytest

from jobs.v1 import jobs_pb2
from jobs_service.model.caller import Level
from tests.support.client import Client
from tests.support.postgres import PostgresServer
from tests.support.service import wait_until
from tests.support.work_rows import empty_queue, expire, one, rows_of, worlds_of_replicas
from tests.support.worker import (
    NO_BACKOFF,
    Lease,
    Refused,
    Worker,
    completion,
    failure,
    giving_back,
    new_service,
    new_worker,
    refusal_in,
    refusal_of,
)
from tests.support.world import World


@pytest.fixture(scope="module")
def module_world(postgres_18: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A service whose jobs nobody else claims."""
    with worlds_of_replicas(postgres_18.new_database(), tmp_path_factory.mktemp("leases"), 1) as [world]:
        yield world


@dataclass(frozen=True)
class Stage:
    """A data set with an owner, and two workers of the same program on connections of their own."""

    world: World
    owner: Client
    dataset: int
    first: Worker
    second: Worker

    def job(self, **fields: Any) -> str:
        """Create a job that is tried again at once."""
        made = self.owner.create(dataset_id=self.dataset, retry_policy=NO_BACKOFF, **fields)
        return str(made.job.job_id)

    def rows(self, lease: Lease) -> dict[str, list[Any]]:
        """All that the database holds of the job."""
        return rows_of(self.world.sql, lease.job_id)

    def expire(self, lease: Lease, *, timed_out: bool = False) -> None:
        """Have the sweep take the job back."""
        expire(self.world.sql, lease.job_id, timed_out=timed_out)

    def retry(self, job_id: str) -> None:
        """RetryJob."""
        self.owner.call("RetryJob", jobs_pb2.RetryJobRequest(job_id=job_id))


@pytest.fixture
def stage(module_world: World) -> Stage:
    empty_queue(module_world.sql)
    dataset = module_world.dataset()
    owner = module_world.client(module_world.user(grants={dataset: Level.WRITE}))
    service = new_service(module_world)
    workers = [new_worker(module_world, service, name) for name in ("first", "second")]
    return Stage(module_world, owner, dataset, *workers)


def by_call(rpc: str, request: Callable[[Lease], Any]) -> Callable[[Worker, Lease], Refused]:
    """The write as a call of its own."""

    def write(worker: Worker, lease: Lease) -> Refused:
        with pytest.raises(grpc.RpcError) as caught:
            worker.call(rpc, request(lease))
        return refusal_of(caught.value)

    return write


def by_item(request: Callable[[Lease], Any]) -> Callable[[Worker, Lease], Refused]:
    """The write as an item of FinishJobs."""

    def write(worker: Worker, lease: Lease) -> Refused:
        refusal = refusal_in(worker.finish(request(lease))[0])
        assert refusal is not None
        return refusal

    return write


def late_completion(lease: Lease) -> Any:
    return completion(lease, {"from": "a zombie"})


def late_failure(lease: Lease) -> Any:
    return failure(lease, type="Zombie", non_retryable=True)


WRITES = {
    "CompleteJob": by_call("CompleteJob", late_completion),
    "FailJob": by_call("FailJob", late_failure),
    "ReleaseJob": by_call("ReleaseJob", giving_back),
    "FinishJobs complete": by_item(late_completion),
    "FinishJobs fail": by_item(late_failure),
    "FinishJobs release": by_item(giving_back),
}
PROGRESS = jobs_pb2.JobProgress(percent=99, message="from a zombie")
LOST, CANCELLED = "lost", "cancel_requested"


class After(NamedTuple):
    """How a worker loses its job; what the job is then, what heartbeats say, and whose it is."""

    lose: Callable[[Stage, Lease], Lease | None]
    status: str
    attempt: int
    heartbeat: str = LOST
    max_attempts: int = 3


def swept(stage: Stage, lease: Lease) -> None:
    stage.expire(lease)


def timed_out(stage: Stage, lease: Lease) -> None:
    stage.expire(lease, timed_out=True)


def taken_by_another(stage: Stage, lease: Lease) -> Lease:
    stage.expire(lease)
    return stage.second.take(lease.job_id)


def completed_by_another(stage: Stage, lease: Lease) -> None:
    stage.second.complete(taken_by_another(stage, lease), {"from": "the owner"})


def failed_by_another(stage: Stage, lease: Lease) -> None:
    stage.second.fail(taken_by_another(stage, lease), non_retryable=True)


def released_by_another(stage: Stage, lease: Lease) -> None:
    stage.second.release(taken_by_another(stage, lease))


def cancelled(stage: Stage, lease: Lease) -> None:
    stage.owner.cancel(lease.job_id, "no longer wanted")


def cancelled_while_anothers(stage: Stage, lease: Lease) -> None:
    taken_by_another(stage, lease)
    cancelled(stage, lease)


def cancelled_and_retried(stage: Stage, lease: Lease) -> None:
    cancelled(stage, lease)
    stage.retry(lease.job_id)


def retried_and_taken_by_another(stage: Stage, lease: Lease) -> Lease:
    cancelled_and_retried(stage, lease)
    return stage.second.take(lease.job_id)


def swept_again_and_taken_by_itself(stage: Stage, lease: Lease) -> Lease:
    """The same worker has the job again, with another token."""
    stage.expire(taken_by_another(stage, lease))
    return stage.first.take(lease.job_id)


LOSSES = {
    "the sweep took it back": After(swept, "PENDING", 1),
    "its time was over": After(timed_out, "PENDING", 1),
    "its last attempt expired": After(swept, "FAILED", 1, max_attempts=1),
    "another has it": After(taken_by_another, "RUNNING", 2),
    "another has completed it": After(completed_by_another, "COMPLETED", 2),
    "another has failed": After(failed_by_another, "FAILED", 2),
    "another has released it": After(released_by_another, "PENDING", 1),
    "it was cancelled": After(cancelled, "CANCELLED", 1, CANCELLED),
    "it was cancelled while another had it": After(cancelled_while_anothers, "CANCELLED", 2),
    "it was cancelled and tried again": After(cancelled_and_retried, "PENDING", 1),
    "it was tried again and another has it": After(retried_and_taken_by_another, "RUNNING", 2),
    "it has the job again": After(swept_again_and_taken_by_itself, "RUNNING", 3),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_worker_that_lost_its_job_writes_nothing_whichever_way_it_tries(stage: Stage, loss: str) -> None:
    after = LOSSES[loss]
    zombie = stage.first.take(stage.job(max_attempts=after.max_attempts))
    owner = after.lose(stage, zombie)
    before = stage.rows(zombie)
    told = {"job_id": zombie.job_id, "status": after.status, "attempt": str(after.attempt)}
    for name, write in WRITES.items():
        assert write(stage.first, zombie) == Refused("LEASE_LOST", told), name
        assert stage.rows(zombie) == before, name
    assert stage.first.heartbeat(zombie, progress=PROGRESS) == [after.heartbeat]
    assert stage.rows(zombie) == before
    if owner is not None:
        done = stage.second.complete(owner, {"from": "the owner"})
        assert (done.status, done.output_summary["from"]) == (jobs_pb2.JOB_STATUS_COMPLETED, "the owner")


@pytest.mark.parametrize("last", ["complete", "fail", "release"])
def test_whoever_has_the_job_ends_it_whatever_the_zombie_did_before(stage: Stage, last: str) -> None:
    zombie = stage.first.take(stage.job())
    owner = taken_by_another(stage, zombie)
    for write in WRITES.values():
        write(stage.first, zombie)
    stage.first.heartbeat(zombie, progress=PROGRESS)
    ends = {
        "complete": lambda: stage.second.complete(owner).status,
        "fail": lambda: stage.second.fail(owner, non_retryable=True).job.status,
        "release": lambda: stage.second.release(owner).status,
    }
    status = jobs_pb2.JobStatus.Name(ends[last]()).removeprefix("JOB_STATUS_")
    assert status == {"complete": "COMPLETED", "fail": "FAILED", "release": "PENDING"}[last]
    attempts = stage.owner.get(zombie.job_id).attempts
    outcomes = [
        jobs_pb2.AttemptOutcome.Name(one.outcome).removeprefix("ATTEMPT_OUTCOME_") for one in attempts
    ]
    ended = {"complete": "COMPLETED", "fail": "FAILED", "release": "RELEASED"}[last]
    assert outcomes == ["LEASE_EXPIRED", ended]
    assert [one.worker_id for one in attempts] == ["first", "second"]


@pytest.mark.parametrize("end", ["complete", "fail", "release"])
def test_a_result_counts_and_a_heartbeat_renews_after_the_lease_until_the_sweep_has_come(
    stage: Stage, end: str
) -> None:
    lease = stage.first.take(stage.job(), lease=3600)
    sql = stage.world.sql
    # Over by a minute; but this process is not yet as old as the lease, so nobody takes the job back.
    sql.execute(
        "UPDATE job_leases SET lease_expire_time = now() - interval '1 minute' WHERE job_id = %s",
        (lease.job_id,),
    )
    # The sweep has had its turn.
    other = stage.second.take(stage.job())
    stage.expire(other)
    if end == "complete":
        assert stage.first.complete(lease).status == jobs_pb2.JOB_STATUS_COMPLETED
    elif end == "fail":
        assert stage.first.fail(lease).will_retry
    else:
        assert stage.first.heartbeat(lease) == ["lease_expire_time"]
        left = "SELECT lease_expire_time > now() + interval '50 s' FROM job_leases WHERE job_id = %s"
        assert one(sql, left, lease.job_id)
        assert stage.first.release(lease).attempt == 0


def test_a_heartbeat_of_many_leases_tells_each_its_own_and_one_that_is_lost_spoils_none(stage: Stage) -> None:
    leases = [stage.first.take(stage.job()) for _ in range(4)]
    kept, dropped, swept_one, done = leases
    stage.owner.cancel(dropped.job_id)
    stage.expire(swept_one)
    stage.first.complete(done)
    unknown = Lease(str(uuid4()), str(uuid4()))
    swapped = Lease(kept.job_id, dropped.lease_token)
    told = stage.first.heartbeat(unknown, dropped, kept, swapped, swept_one, done)
    assert told == [LOST, CANCELLED, "lease_expire_time", LOST, LOST, LOST]


@pytest.mark.parametrize("kind", ["another's", "made up", "no UUID", "of another job"])
def test_a_token_that_was_never_the_jobs_is_worth_nothing(stage: Stage, kind: str) -> None:
    lease, other = stage.first.take(stage.job()), stage.second.take(stage.job())
    tokens = {
        "another's": other.lease_token,
        "made up": str(uuid4()),
        "no UUID": "' OR 1=1 --",
        "of another job": lease.job_id,
    }
    forged = Lease(lease.job_id, tokens[kind])
    before = stage.rows(lease)
    for name, write in WRITES.items():
        assert write(stage.first, forged).reason == "LEASE_LOST", name
    assert stage.first.heartbeat(forged, progress=PROGRESS) == [LOST]
    assert stage.rows(lease) == before
    assert stage.first.complete(lease).status == jobs_pb2.JOB_STATUS_COMPLETED


def test_a_job_that_is_not_there_is_not_found_by_every_write_and_lost_to_heartbeats(stage: Stage) -> None:
    nothing = Lease(str(uuid4()), str(uuid4()))
    for name, write in WRITES.items():
        assert write(stage.first, nothing).reason == "JOB_NOT_FOUND", name
    assert stage.first.heartbeat(nothing) == [LOST]


@pytest.mark.parametrize("loss", ["it was cancelled", "the sweep took it back", "another has it"])
def test_a_heartbeat_that_waits_hears_of_the_loss_at_once(stage: Stage, loss: str) -> None:
    lease = stage.first.take(stage.job())
    request = stage.first.heartbeat
    answers: list[list[str]] = []
    thread = threading.Thread(target=lambda: answers.append(request(lease, lease=3600, wait=60)))
    renewed = "SELECT lease_duration > interval '1 minute' FROM job_leases WHERE job_id = %s"
    thread.start()
    wait_until(lambda: one(stage.world.sql, renewed, lease.job_id), 10, "the heartbeat waits")
    LOSSES[loss].lose(stage, lease)
    thread.join(25)
    assert answers == [[LOSSES[loss].heartbeat]]
