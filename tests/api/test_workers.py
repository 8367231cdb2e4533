"""The RPCs of workers, as workers call them."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from jobs.v1 import errors_pb2, jobs_pb2, workers_pb2
from jobs_service.model.caller import Level
from jobs_service.model.job import RunType
from tests.support.client import Client, WorkerClient, lease_of, refused
from tests.support.service import ServiceProcess
from tests.support.world import World

IMPORT = jobs_pb2.RUN_TYPE_IMPORT
SAMPLING = jobs_pb2.RUN_TYPE_SAMPLING
RPCS = [method.name for method in workers_pb2.DESCRIPTOR.services_by_name["WorkersService"].methods]


class Place:
    """A data set, somebody who makes jobs on it, and a worker."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dataset = world.dataset()
        self.maker: Client = world.client(world.user(grants={self.dataset: Level.WRITE}))
        self.worker: WorkerClient = world.worker()

    def create(self, **fields: Any) -> jobs_pb2.Job:
        return self.maker.create(dataset_id=self.dataset, **fields).job

    def claimed(self, **fields: Any) -> workers_pb2.Claim:
        """A new job, claimed by the worker."""
        job = self.create(**fields)
        claim = self.worker.claim_one()
        assert claim.job.job_id == job.job_id
        return claim


@pytest.fixture
def place(work_world: World) -> Place:
    return Place(work_world)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as pool:
        yield pool


def test_a_claim_gives_the_job_with_its_token_and_its_lease(place: Place) -> None:
    made = place.create(run_parameters={"file_path": "a.csv", "n": 3}, priority=7)
    answer = place.worker.claim(lease_duration=timedelta(seconds=30), worker_id="host-1/2")
    (claim,) = answer.claims
    assert (claim.job.job_id, claim.job.run_parameters["n"], claim.job.priority) == (made.job_id, 3, 7)
    assert claim.job.status == jobs_pb2.JOB_STATUS_RUNNING
    assert (claim.attempt, claim.job.attempt, claim.job.worker_id) == (1, 1, "host-1/2")
    assert 1 <= len(claim.lease_token) <= 128
    assert claim.lease_duration.ToTimedelta() == timedelta(seconds=30)
    left = claim.lease_expire_time.ToDatetime() - claim.job.start_time.ToDatetime()
    assert left == timedelta(seconds=30)
    assert [attempt.worker_id for attempt in claim.job.attempts] == ["host-1/2"]
    assert not answer.run_types_not_granted


def test_a_claim_without_jobs_is_empty_at_once(place: Place) -> None:
    answer = place.worker.claim()
    assert (len(answer.claims), answer.more) == (0, False)


def test_a_claim_gives_no_more_than_were_asked_for_and_says_that_there_are_more(place: Place) -> None:
    made = [place.create().job_id for _ in range(5)]
    first = place.worker.claim(max_jobs=3)
    second = place.worker.claim(max_jobs=3)
    assert [claim.job.job_id for claim in (*first.claims, *second.claims)] == made
    assert (first.more, second.more) == (True, False)
    assert len({claim.lease_token for claim in (*first.claims, *second.claims)}) == 5


def test_run_types_that_are_not_granted_are_left_out_and_named(place: Place) -> None:
    place.create()
    worker = place.world.worker([RunType.IMPORT])
    answer = worker.claim(run_types=[SAMPLING, IMPORT])
    assert list(answer.run_types_not_granted) == [SAMPLING]
    assert len(answer.claims) == 1


def test_the_trace_of_the_create_comes_with_the_claim(place: Place) -> None:
    traceparent = f"00-{uuid4().hex}-{uuid4().hex[:16]}-01"
    request = jobs_pb2.CreateJobRequest(dataset_id=place.dataset, run_type=IMPORT)
    request.run_parameters.update({"file_path": "a"})
    place.maker.call("CreateJob", request, metadata=(("traceparent", traceparent),))
    assert place.worker.claim_one().traceparent == traceparent


def test_a_heartbeat_renews_and_reports(place: Place) -> None:
    claim = place.claimed()
    progress = {"percent": 12.5, "message": "reading", "details": {"rows": 3}}
    (result,) = place.worker.heartbeat(claim, lease_duration=timedelta(minutes=30), progress=progress)
    assert result.WhichOneof("result") == "lease_expire_time"
    assert result.lease_expire_time.ToDatetime() > claim.lease_expire_time.ToDatetime()
    shown = place.maker.get(claim.job.job_id).progress
    assert (shown.percent, shown.message, shown.details["rows"]) == (12.5, "reading", 3)


def test_a_completed_job_has_its_summary_and_its_commit(place: Place) -> None:
    claim = place.claimed()
    job = place.worker.complete(claim, output_summary={"rows": 7}, output_commit_id="c0ffee")
    assert (job.status, job.output_summary["rows"], job.output_commit_id) == (
        jobs_pb2.JOB_STATUS_COMPLETED,
        7,
        "c0ffee",
    )
    assert place.worker.complete(claim, output_summary={"rows": 7}, output_commit_id="c0ffee") == job
    assert job.attempts[0].outcome == jobs_pb2.ATTEMPT_OUTCOME_COMPLETED


def test_a_failed_attempt_is_tried_again_later_unless_that_is_no_use(place: Place) -> None:
    answer = place.worker.fail(place.claimed(), retry_delay=timedelta(minutes=5))
    assert (answer.will_retry, answer.job.status) == (True, jobs_pb2.JOB_STATUS_PENDING)
    waits = answer.job.available_time.ToDatetime() - answer.job.update_time.ToDatetime()
    assert waits == timedelta(minutes=5)
    answer = place.worker.fail(place.claimed(), non_retryable=True)
    assert (answer.will_retry, answer.job.status) == (False, jobs_pb2.JOB_STATUS_FAILED)
    assert (answer.job.error.type, answer.job.error.message) == ("ValueError", "the file is empty")
    assert not answer.job.error.retryable


def test_a_message_that_is_too_long_is_cut_between_letters(place: Place) -> None:
    error = {"type": "E", "message": "x" + "\u20ac" * 400}
    job = place.worker.fail(place.claimed(), error=error, non_retryable=True).job
    assert job.error_message == "x" + "\u20ac" * 333


def test_a_job_that_is_released_may_be_claimed_again_and_has_spent_nothing(place: Place) -> None:
    claim = place.claimed()
    job = place.worker.release(claim)
    assert (job.status, job.attempt) == (jobs_pb2.JOB_STATUS_PENDING, 0)
    again = place.worker.claim_one()
    assert (again.job.job_id, again.attempt) == (job.job_id, 1)
    assert again.lease_token != claim.lease_token


def test_many_claims_end_in_one_call_and_each_has_its_own_answer(place: Place) -> None:
    for _ in range(5):
        place.create()
    claims = place.worker.claim(max_jobs=5).claims
    stolen = lease_of(claims[3]) | {"lease_token": "f" * 32}
    results = place.worker.finish(
        {"complete": {**lease_of(claims[0]), "output_summary": {"rows": 1}}},
        {"fail": {**lease_of(claims[1]), "error": {"type": "E"}}},
        {"release": lease_of(claims[2])},
        {"complete": stolen},
        {"fail": {**lease_of(claims[4]), "error": {"type": "E"}, "non_retryable": True}},
    )
    assert [result.job_id for result in results] == [claim.job.job_id for claim in claims]
    shown = [(result.job.status, result.will_retry) for result in results]
    assert shown == [
        (jobs_pb2.JOB_STATUS_COMPLETED, False),
        (jobs_pb2.JOB_STATUS_PENDING, True),
        (jobs_pb2.JOB_STATUS_PENDING, True),
        (jobs_pb2.JOB_STATUS_UNSPECIFIED, False),
        (jobs_pb2.JOB_STATUS_FAILED, False),
    ]
    assert results[3].error.code == 9
    assert results[3].error.reason == errors_pb2.ERROR_REASON_LEASE_LOST
    assert results[3].error.metadata["job_id"] == claims[3].job.job_id
    assert not results[0].job.HasField("output_summary"), "the view is BASIC"


def test_a_thousand_long_jobs_are_answered_in_one_call(place: Place) -> None:
    for _ in range(30):
        place.create(description="\u20ac" * 333)
    claims: list[workers_pb2.Claim] = []
    while batch := place.worker.claim(max_jobs=100).claims:
        claims.extend(batch)
    details = {"list": [0] * 1500}
    place.worker.heartbeat(*claims, progress={"percent": 1, "details": details})
    items = [{"release": {**lease_of(claim), "delay": timedelta(days=1)}} for claim in claims] * 34
    results = place.worker.finish(*items[:1000])
    assert len(results) == 1000
    size = sum(result.ByteSize() for result in results)
    assert size < 3 * 1024 * 1024
    assert all(result.job.status == jobs_pb2.JOB_STATUS_PENDING for result in results)
    assert results[0].job.description
    assert not results[-1].job.description


@pytest.mark.parametrize("token", ["0" * 32, "f" * 32, "F" * 32, "x", "\u20ac" * 42, "'; --", "a\0b"])
def test_a_text_that_is_no_token_of_ours_is_one_that_owns_nothing(place: Place, token: str) -> None:
    lease = workers_pb2.Heartbeat(job_id=place.claimed().job.job_id, lease_token=token)
    (result,) = place.worker.heartbeat(lease)
    assert result.lost
    calls: list[Callable[[], Any]] = [
        lambda: place.worker.complete(lease),
        lambda: place.worker.fail(lease),
        lambda: place.worker.release(lease),
    ]
    for call in calls:
        with refused("FAILED_PRECONDITION", "LEASE_LOST") as refusal:
            call()
        assert refusal.it.metadata == {"job_id": lease.job_id, "status": "RUNNING", "attempt": "1"}
        assert token not in refusal.it.message


def test_a_token_in_another_spelling_is_another_token(place: Place) -> None:
    claim = place.claimed()
    for text in (claim.lease_token.upper(), f" {claim.lease_token[1:]}", claim.lease_token + "\n"):
        if text != claim.lease_token:
            (result,) = place.worker.heartbeat(
                workers_pb2.Heartbeat(job_id=claim.job.job_id, lease_token=text)
            )
            assert result.lost


def test_one_lost_lease_keeps_no_other_from_being_renewed(place: Place) -> None:
    claim = place.claimed()
    nothing = workers_pb2.Heartbeat(job_id=str(uuid4()), lease_token="f" * 32)
    results = place.worker.heartbeat(nothing, claim, nothing, claim)
    assert [result.WhichOneof("result") for result in results] == [
        "lost",
        "lease_expire_time",
        "lost",
        "lease_expire_time",
    ]


def test_a_cancelled_job_is_told_in_the_next_heartbeat_and_its_result_is_refused(place: Place) -> None:
    claim = place.claimed()
    place.maker.cancel(claim.job.job_id, "not needed")
    (result,) = place.worker.heartbeat(claim)
    assert result.cancel_requested
    with refused("FAILED_PRECONDITION", "LEASE_LOST") as refusal:
        place.worker.complete(claim)
    assert refusal.it.metadata["status"] == "CANCELLED"


def test_no_token_stands_in_the_log(place: Place, work_service: tuple[str, ServiceProcess]) -> None:
    claim = place.claimed()
    place.worker.heartbeat(claim)
    place.worker.complete(claim)
    with refused("FAILED_PRECONDITION", "LEASE_LOST"):
        place.worker.fail(claim)
    log = work_service[1].log_file.read_text()
    assert "/jobs.v1.WorkersService/CompleteJob" in log
    assert claim.lease_token not in log


def test_claims_of_large_jobs_make_an_answer_that_clients_can_take(place: Place) -> None:
    large = {"file_path": "a.csv", "list": [0] * 110_000}
    made = {place.create(run_parameters=large).job_id for _ in range(6)}
    found: list[str] = []
    while answer := place.worker.claim(max_jobs=100):
        assert answer.ByteSize() <= 3 * 1024 * 1024
        if not answer.claims:
            break
        found.extend(claim.job.job_id for claim in answer.claims)
        assert answer.more == (len(found) < len(made)) or answer.more
    assert sorted(found) == sorted(made)
    attempts = {row[0] for row in place.world.sql.execute("SELECT attempt FROM jobs")}
    assert attempts == {1}


def test_workers_at_once_share_the_jobs_and_no_job_goes_to_two(
    place: Place, threads: ThreadPoolExecutor
) -> None:
    made = {place.create().job_id for _ in range(40)}
    clients = [place.world.worker() for _ in range(8)]

    def work(client: WorkerClient) -> list[str]:
        done: list[str] = []
        while claims := client.claim(max_jobs=2).claims:
            done.extend(client.complete(claim).job_id for claim in claims)
        return done

    done = [job_id for jobs in threads.map(work, clients) for job_id in jobs]
    assert len(done) == 40
    assert set(done) == made


def test_what_cancel_answers_is_what_is_read_afterwards(place: Place) -> None:
    claim = place.claimed()
    waiting = place.create(depends_on_job_ids=[claim.job.job_id])
    assert place.maker.cancel(waiting.job_id) == place.maker.get(waiting.job_id)
    assert place.maker.cancel(claim.job.job_id) == place.maker.get(claim.job.job_id)
