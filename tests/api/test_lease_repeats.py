"""A worker whose answer was lost asks again: the same call gets the same answer and writes nothing more."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from jobs.v1 import jobs_pb2
from jobs_service.model.caller import Level
from tests.support.client import Client, refused
from tests.support.postgres import PostgresServer
from tests.support.work_rows import empty_queue, rows_of, types_of_events, worlds_of_replicas
from tests.support.worker import (
    NO_BACKOFF,
    Lease,
    Worker,
    completion,
    failure,
    giving_back,
    new_service,
    new_worker,
    refusal_in,
)
from tests.support.world import World

AT_ONCE = 16


@pytest.fixture(scope="module")
def replicas(postgres_18: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[World]]:
    """Two services whose jobs nobody else claims."""
    with worlds_of_replicas(postgres_18.new_database(), tmp_path_factory.mktemp("repeats")) as worlds:
        yield worlds


@dataclass(frozen=True)
class Stage:
    """A data set with an owner, and workers of one program on both replicas."""

    world: World
    owner: Client
    dataset: int
    first: Worker
    second: Worker

    def taken(self, **fields: Any) -> Lease:
        """A job that is tried again at once, and that the first worker has."""
        made = self.owner.create(dataset_id=self.dataset, retry_policy=NO_BACKOFF, **fields)
        return self.first.take(made.job.job_id)

    def rows(self, lease: Lease) -> dict[str, list[Any]]:
        """All that the database holds of the job."""
        return rows_of(self.world.sql, lease.job_id)


@pytest.fixture
def stage(replicas: list[World]) -> Stage:
    empty_queue(replicas[0].sql)
    dataset = replicas[0].dataset()
    owner = replicas[0].client(replicas[0].user(grants={dataset: Level.WRITE}))
    service = new_service(replicas[0])
    workers = [new_worker(world, service, f"worker {n}") for n, world in enumerate(replicas)]
    return Stage(replicas[0], owner, dataset, *workers)


@dataclass(frozen=True)
class End:
    """A call that ends a claim. other: one of the same kind that says something else."""

    rpc: str
    request: Callable[[Lease], Any]
    other: Callable[[Lease], Any]
    will_retry: bool
    may_be_taken_again: bool


ENDS = {
    "complete": End(
        "CompleteJob",
        lambda lease: completion(lease, {"rows": 1}),
        lambda lease: completion(lease, {"rows": 2}),
        will_retry=False,
        may_be_taken_again=False,
    ),
    "fail": End(
        "FailJob",
        failure,
        lambda lease: failure(lease, type="Other", non_retryable=True),
        will_retry=True,
        may_be_taken_again=True,
    ),
    "fail for good": End(
        "FailJob",
        lambda lease: failure(lease, non_retryable=True),
        failure,
        will_retry=False,
        may_be_taken_again=False,
    ),
    "release": End(
        "ReleaseJob",
        giving_back,
        lambda lease: giving_back(lease, delay=60),
        will_retry=True,
        may_be_taken_again=True,
    ),
}
# What becomes of the job until the call is repeated.
LATER = ["at once", "when another has it", "when another is done", "when it was tried again"]


def let_go_on(stage: Stage, job_id: str, later: str, end: End) -> None:
    """Bring the job there."""
    if later == "when it was tried again":
        if end.may_be_taken_again:
            stage.owner.cancel(job_id)
        stage.owner.call("RetryJob", jobs_pb2.RetryJobRequest(job_id=job_id))
    elif later != "at once":
        owner = stage.second.take(job_id)
        if later == "when another is done":
            stage.second.complete(owner)


CASES = [
    (kind, later)
    for kind, end in ENDS.items()
    for later in LATER
    if later == "at once"
    or (end.may_be_taken_again and later != LATER[3])
    or (later == LATER[3] and kind != "complete")
]


@pytest.mark.parametrize(("kind", "later"), CASES)
def test_a_repeated_call_gets_its_answer_again_and_the_job_as_it_is_now(
    stage: Stage, kind: str, later: str
) -> None:
    end, lease = ENDS[kind], stage.taken()
    first = stage.first.call(end.rpc, end.request(lease))
    let_go_on(stage, lease.job_id, later, end)
    before, now = stage.rows(lease), stage.owner.get(lease.job_id)
    for worker in (stage.first, stage.second):
        again = worker.call(end.rpc, end.request(lease))
        assert again.job == now
        assert getattr(again, "will_retry", None) == getattr(first, "will_retry", None)
        [item] = worker.finish(end.request(lease))
        assert refusal_in(item) is None
        assert (item.job.status, item.job.version, item.will_retry) == (
            now.status,
            now.version,
            end.will_retry,
        )
    assert stage.rows(lease) == before


@pytest.mark.parametrize("kind", ENDS)
def test_of_two_different_calls_of_one_kind_the_first_stands(stage: Stage, kind: str) -> None:
    end, lease = ENDS[kind], stage.taken()
    first = stage.first.call(end.rpc, end.request(lease))
    before = stage.rows(lease)
    second = stage.first.call(end.rpc, end.other(lease))
    assert second == first
    assert stage.rows(lease) == before


@pytest.mark.parametrize("kind", ENDS)
def test_another_kind_of_call_with_a_token_that_ended_its_claim_is_refused(stage: Stage, kind: str) -> None:
    lease = stage.taken()
    stage.first.call(ENDS[kind].rpc, ENDS[kind].request(lease))
    before = stage.rows(lease)
    others = [end for end in ENDS.values() if end.rpc != ENDS[kind].rpc]
    for other in others:
        with refused("FAILED_PRECONDITION", "LEASE_LOST"):
            stage.first.call(other.rpc, other.request(lease))
        refusal = refusal_in(stage.first.finish(other.request(lease))[0])
        assert refusal is not None
        assert refusal.reason == "LEASE_LOST"
    progress = jobs_pb2.JobProgress(percent=1)
    assert stage.first.heartbeat(lease, progress=progress) == ["lost"]
    assert stage.rows(lease) == before


@pytest.mark.parametrize("kind", ENDS)
def test_items_of_one_call_for_one_claim_end_it_once(stage: Stage, kind: str) -> None:
    end, lease = ENDS[kind], stage.taken()
    other = next(other for other in ENDS.values() if other.rpc != end.rpc)
    results = stage.first.finish(end.request(lease), other.request(lease), end.request(lease))
    assert [refusal and refusal.reason for refusal in map(refusal_in, results)] == [None, "LEASE_LOST", None]
    assert results[0] == results[2]
    assert len(types_of_events(stage.world.sql, lease.job_id)) == 3
    assert len(stage.rows(lease)["job_attempts"]) == 1


def test_the_release_that_counts_as_a_failure_is_answered_again_as_a_release(stage: Stage) -> None:
    lease = stage.taken()
    stage.world.sql.execute("UPDATE jobs SET releases = 100 WHERE job_id = %s", (lease.job_id,))
    first = stage.first.release(lease)
    assert (first.status, first.attempt) == (jobs_pb2.JOB_STATUS_PENDING, 1)
    assert first.attempts[0].error.type == "ReleasedTooOften"
    before = stage.rows(lease)
    assert stage.first.release(lease) == first
    with refused("FAILED_PRECONDITION", "LEASE_LOST"):
        stage.first.complete(lease)
    assert stage.rows(lease) == before


def test_a_hundred_releases_in_a_row_cost_nothing_and_the_next_one_an_attempt(stage: Stage) -> None:
    lease = stage.taken(max_attempts=1)
    for _ in range(100):
        assert stage.first.release(lease).attempt == 0
        lease = stage.first.take(lease.job_id)
    last = stage.first.release(lease)
    assert (last.status, last.attempt) == (jobs_pb2.JOB_STATUS_FAILED, 1)
    assert last.error.type == "ReleasedTooOften"
    assert types_of_events(stage.world.sql, lease.job_id)[-2:] == ["CLAIMED", "FAILED"]


def at_once(stage: Stage, rpc: str, requests: list[Any]) -> list[Any]:
    """Send them all at the same time to both replicas in turn; answers, None where refused."""
    workers = [stage.first, stage.second] * len(requests)
    futures = [
        getattr(worker.stub, rpc).future(request, metadata=worker.metadata, timeout=30)
        for worker, request in zip(workers, requests, strict=False)
    ]
    answers = []
    for future in futures:
        try:
            answers.append(future.result())
        except grpc.RpcError:
            answers.append(None)
    return answers


@pytest.mark.parametrize("kind", ENDS)
def test_repeats_at_the_same_time_on_two_replicas_all_get_one_answer(stage: Stage, kind: str) -> None:
    end = ENDS[kind]
    for _ in range(5):
        lease = stage.taken()
        answers = at_once(stage, end.rpc, [end.request(lease)] * AT_ONCE)
        assert all(answer == answers[0] for answer in answers)
        assert answers[0] is not None
        assert len(types_of_events(stage.world.sql, lease.job_id)) == 3
        assert len(stage.rows(lease)["job_attempts"]) == 1
        empty_queue(stage.world.sql)


def test_of_different_results_at_the_same_time_one_stands_and_all_are_shown_it(stage: Stage) -> None:
    for _ in range(5):
        lease = stage.taken()
        requests = [completion(lease, {"rows": number}) for number in range(AT_ONCE)]
        answers = at_once(stage, "CompleteJob", requests)
        assert None not in answers
        assert {answer.job.output_summary["rows"] for answer in answers} == {
            stage.owner.get(lease.job_id).output_summary["rows"]
        }
        assert types_of_events(stage.world.sql, lease.job_id) == ["CREATED", "CLAIMED", "COMPLETED"]
