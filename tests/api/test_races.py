"""Many callers at once, on two replicas of one database: what each of them is told fits together."""

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

import grpc
import psycopg
import pytest

from jobs.v1 import jobs_pb2
from jobs_service.model.caller import Level
from tests.support.client import Client, RichError, refused, rich_error
from tests.support.postgres import connect
from tests.support.service import wait_until
from tests.support.world import User, World

ROUNDS = 100
CALLERS = 32


@pytest.fixture
def dataset(replicas: list[World]) -> int:
    return replicas[0].dataset()


def writer(replicas: list[World], dataset: int) -> User:
    """A user who may write the data set."""
    return replicas[0].user(grants={dataset: Level.WRITE})


def everywhere(replicas: list[World], user: User) -> list[Client]:
    """Clients of one user: two connections to each replica."""
    return [world.client(user) for world in replicas * 2]


def at_once(calls: Sequence[tuple[Client, str, Any]]) -> list[Any]:
    """Make all calls at the same time; what each one answered, refusals as RichError, in order."""
    futures = [
        getattr(client.stub, rpc).future(request, metadata=client.metadata, timeout=30)
        for client, rpc, request in calls
    ]
    return [answer(future) for future in futures]


def answer(future: Any) -> Any:
    """What a call answered, a refusal as a RichError."""
    try:
        return future.result()
    except grpc.RpcError as error:
        return rich_error(error)


def create_request(dataset: int, **fields: Any) -> jobs_pb2.CreateJobRequest:
    """An import on this data set."""
    plain: dict[str, Any] = {
        "dataset_id": dataset,
        "run_type": jobs_pb2.RUN_TYPE_IMPORT,
        "run_parameters": {"file_path": "landing/a.csv"},
    }
    return jobs_pb2.CreateJobRequest(**plain, **fields)


def history(world: World, job_id: str) -> list[str]:
    """What happened to a job, oldest first."""
    return [event["type"] for event in world.events(job_id)]


def jobs_made(world: World, request_ids: Sequence[str]) -> int:
    """How many jobs have one of these request ids."""
    row = world.sql.execute(
        "SELECT count(*) FROM jobs WHERE request_id = ANY(%s)", ([uuid.UUID(text) for text in request_ids],)
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_of_many_cancels_exactly_one_wins_and_the_others_are_told_who_did(
    replicas: list[World], dataset: int
) -> None:
    users = [writer(replicas, dataset) for _ in range(4)]
    clients = [world.client(user) for user, world in zip(users, replicas * 2, strict=True)]
    callers = list(islice(cycle(zip(users, clients, strict=True)), CALLERS))
    for n in range(ROUNDS):
        job = clients[n % 4].create(dataset_id=dataset).job
        request = jobs_pb2.CancelJobRequest(job_id=job.job_id)
        answers = at_once([(client, "CancelJob", request) for _, client in callers])
        won = [index for index, found in enumerate(answers) if not isinstance(found, RichError)]
        assert len(won) == 1
        winner, cancelled = callers[won[0]][0].soeid, answers[won[0]].job
        assert (cancelled.version, cancelled.cancelled_by_soeid) == (2, winner)
        lost = [found for found in answers if isinstance(found, RichError)]
        expected = {"job_id": job.job_id, "status": "CANCELLED", "cancelled_by": winner}
        assert {(found.code, found.reason) for found in lost} == {
            ("FAILED_PRECONDITION", "JOB_NOT_CANCELLABLE")
        }
        assert all(found.metadata == expected for found in lost)
        assert clients[0].get(job.job_id) == cancelled
        assert history(replicas[0], job.job_id) == ["CREATED", "CANCELLED"]


def test_of_many_creates_with_one_request_id_one_makes_the_job_and_all_get_it(
    replicas: list[World], dataset: int
) -> None:
    clients = everywhere(replicas, writer(replicas, dataset))
    for _ in range(ROUNDS):
        request = create_request(dataset, request_id=str(uuid.uuid4()))
        answers = at_once([(client, "CreateJob", request) for client in islice(cycle(clients), CALLERS)])
        assert Counter(found.replayed for found in answers) == {False: 1, True: CALLERS - 1}
        assert all(found.job == answers[0].job for found in answers)
        assert jobs_made(replicas[0], [request.request_id]) == 1
        assert history(replicas[0], answers[0].job.job_id) == ["CREATED"]


def test_of_two_requests_with_one_request_id_one_makes_the_job_and_the_other_conflicts_for_all(
    replicas: list[World], dataset: int
) -> None:
    clients = everywhere(replicas, writer(replicas, dataset))
    # In an order that gives each of the four clients, and so each replica, both requests.
    priorities = list(islice(cycle([1, 2, 2, 1, 2, 1, 1, 2]), CALLERS))
    for _ in range(ROUNDS):
        request_id = str(uuid.uuid4())
        answers = at_once(
            [
                (client, "CreateJob", create_request(dataset, request_id=request_id, priority=priority))
                for client, priority in zip(cycle(clients), priorities, strict=False)
            ]
        )
        made = [found for found in answers if not isinstance(found, RichError)]
        assert Counter(found.replayed for found in made) == {False: 1, True: CALLERS // 2 - 1}
        job = made[0].job
        assert all(found.job == job for found in made)
        for priority, found in zip(priorities, answers, strict=True):
            assert isinstance(found, RichError) == (priority != job.priority)
            if isinstance(found, RichError):
                assert (found.code, found.reason) == ("ALREADY_EXISTS", "REQUEST_ID_CONFLICT")
                assert found.metadata == {"request_id": request_id, "job_id": job.job_id}
        assert jobs_made(replicas[0], [request_id]) == 1
        assert history(replicas[0], job.job_id) == ["CREATED"]


def test_request_ids_in_opposed_orders_on_two_replicas_make_each_job_once(
    replicas: list[World], dataset: int
) -> None:
    user = writer(replicas, dataset)
    forwards, backwards = (world.client(user) for world in replicas)
    for _ in range(ROUNDS):
        requests = [create_request(dataset, request_id=str(uuid.uuid4())) for _ in range(CALLERS)]
        calls = [
            call
            for up, down in zip(requests, reversed(requests), strict=True)
            for call in ((forwards, "CreateJob", up), (backwards, "CreateJob", down))
        ]
        answers = at_once(calls)
        first, second = answers[::2], answers[:0:-2]
        for one, other in zip(first, second, strict=True):
            assert one.job == other.job
            assert {one.replayed, other.replayed} == {False, True}
        assert len({found.job.job_id for found in first}) == CALLERS
        assert jobs_made(replicas[0], [request.request_id for request in requests]) == CALLERS


def test_pages_that_are_read_while_jobs_are_created_miss_none_and_show_none_twice(
    replicas: list[World],
) -> None:
    for number in range(ROUNDS):
        if number % 5 == 0:
            dataset = replicas[0].dataset()
            creator = replicas[1].client(writer(replicas, dataset))
            reader = replicas[0].client(replicas[0].user(grants={dataset: Level.READ}))
            request = create_request(dataset)
            there = {found.job.job_id for found in at_once([(creator, "CreateJob", request)] * 60)}
        shown, creating = [], []
        for page in reader.pages(filter=jobs_pb2.JobFilter(dataset_id=dataset), page_size=20):
            shown += [(job.create_time.ToDatetime(), job.job_id) for job in page.jobs]
            creating += [
                creator.stub.CreateJob.future(request, metadata=creator.metadata, timeout=30)
                for _ in range(3)
            ]
        assert shown == sorted(set(shown), reverse=True)
        assert there <= {job_id for _, job_id in shown}
        there |= {future.result().job.job_id for future in creating}


@contextmanager
def holding(world: World, job_ids: Sequence[str]) -> Iterator[psycopg.Connection]:
    """Another transaction that holds these jobs' rows; committed at the end of the block."""
    with connect(world.database_url) as other:
        other.execute("BEGIN")
        other.execute("SELECT FROM jobs WHERE job_id = ANY(%s::uuid[]) FOR UPDATE", (list(job_ids),))
        yield other
        if not other.closed:
            other.execute("COMMIT")


def somebody_waits_for(world: World, other: psycopg.Connection) -> Callable[[], bool]:
    """Whether a transaction waits for a lock that the other one holds."""

    def waits() -> bool:
        query = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
        row = world.sql.execute(query, (other.info.backend_pid,)).fetchone()
        return row is not None and row[0] > 0

    return waits


@pytest.mark.parametrize("status", ["RUNNING", "COMPLETED", "FAILED"])
def test_a_cancel_waits_for_a_change_of_status_and_answers_what_follows_from_it(
    replicas: list[World], dataset: int, status: str
) -> None:
    world = replicas[0]
    owner = world.client(writer(replicas, dataset))
    job = owner.create(dataset_id=dataset).job
    with ThreadPoolExecutor(1) as thread:
        with holding(world, [job.job_id]) as other:
            cancelling = thread.submit(owner.cancel, job.job_id)
            wait_until(somebody_waits_for(world, other), 5, "the cancel waits")
            # After the cancel's transaction began: its now() is too early by this much.
            other.execute(
                """UPDATE jobs SET status = %s, version = version + 1, start_time = clock_timestamp(),
                          update_time = clock_timestamp(),
                          error_type = CASE WHEN %s = 'FAILED' THEN 'ValueError' END,
                          end_time = CASE WHEN %s <> 'RUNNING' THEN clock_timestamp() END
                    WHERE job_id = %s""",
                (status, status, status, job.job_id),
            )
            assert not cancelling.done()
        if status == "RUNNING":
            cancelled = cancelling.result()
        else:
            with refused("FAILED_PRECONDITION", "JOB_NOT_CANCELLABLE") as refusal:
                cancelling.result()
            assert refusal.it.metadata == {"job_id": job.job_id, "status": status}
    found = owner.get(job.job_id)
    if status == "RUNNING":
        assert found == cancelled
        assert (found.status, found.version) == (jobs_pb2.JOB_STATUS_CANCELLED, 3)
        times = [found.create_time, found.start_time, found.end_time]
        assert [time.ToNanoseconds() for time in times] == sorted(time.ToNanoseconds() for time in times)
        assert found.update_time == found.end_time
        [_, event] = world.events(job.job_id)
        assert (event["type"], event["status_before"]) == ("CANCELLED", "RUNNING")
    else:
        assert found.version == 2
        assert history(world, job.job_id) == ["CREATED"]


def test_a_cancel_never_ends_before_a_time_that_is_in_the_row_already(
    replicas: list[World], dataset: int
) -> None:
    owner = replicas[0].client(writer(replicas, dataset))
    job = owner.create(dataset_id=dataset).job
    # As a primary left it whose clock was ahead of ours.
    replicas[0].sql.execute(
        "UPDATE jobs SET update_time = now() + interval '1 hour' WHERE job_id = %s", (job.job_id,)
    )
    cancelled = owner.cancel(job.job_id)
    assert cancelled.end_time.ToNanoseconds() >= job.create_time.ToNanoseconds() + 3_500 * 10**9
    assert cancelled.update_time == cancelled.end_time


def test_a_cancel_after_a_change_that_was_rolled_back_wins(replicas: list[World], dataset: int) -> None:
    owner = replicas[0].client(writer(replicas, dataset))
    job = owner.create(dataset_id=dataset).job
    with ThreadPoolExecutor(1) as thread, connect(replicas[0].database_url) as other:
        other.execute("BEGIN")
        other.execute(
            "UPDATE jobs SET status = 'COMPLETED', end_time = now() WHERE job_id = %s", (job.job_id,)
        )
        cancelling = thread.submit(owner.cancel, job.job_id)
        wait_until(somebody_waits_for(replicas[0], other), 5, "the cancel waits")
        other.execute("ROLLBACK")
        assert cancelling.result().version == 2
    assert history(replicas[0], job.job_id) == ["CREATED", "CANCELLED"]


def test_a_row_that_is_locked_too_long_is_unavailable_and_spoils_no_other_cancel_of_its_batch(
    world: World,
) -> None:
    dataset = world.dataset()
    owner = world.client(world.user(grants={dataset: Level.WRITE}))
    request = create_request(dataset)
    first, locked, *others = [found.job.job_id for found in at_once([(owner, "CreateJob", request)] * 9)]
    answered = threading.Semaphore(0)

    def cancel(job_id: str) -> Any:
        future = owner.stub.CancelJob.future(
            jobs_pb2.CancelJobRequest(job_id=job_id), metadata=owner.metadata, timeout=60
        )
        future.add_done_callback(lambda _: answered.release())
        return future

    with holding(world, [first, locked]) as other:
        # The batch of the first one waits, and all the others come together in the next.
        blocked = cancel(first)
        wait_until(somebody_waits_for(world, other), 5, "the first cancel waits")
        futures = [cancel(job_id) for job_id in (locked, *others)]
        assert all(answered.acquire(timeout=30) for _ in range(9))
    refusals = [answer(blocked), answer(futures[0])]
    assert [(found.code, found.reason) for found in refusals] == [("UNAVAILABLE", "DATABASE_UNAVAILABLE")] * 2
    cancelled = [answer(future) for future in futures[1:]]
    assert not [found for found in cancelled if isinstance(found, RichError)]
    assert {found.job.job_id for found in cancelled} == set(others)
    for job_id in (first, locked):
        assert owner.cancel(job_id).version == 2
