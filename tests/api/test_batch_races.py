"""Batches at the same time as others, on two replicas of one database."""

import uuid
from collections import Counter

import pytest

from jobs.v1 import errors_pb2, jobs_pb2
from tests.api.test_races import at_once, create_request, everywhere, history, jobs_made, writer
from tests.support.client import RichError
from tests.support.world import World

ROUNDS = 10
JOBS = 100


@pytest.fixture
def dataset(replicas: list[World]) -> int:
    return replicas[0].dataset()


def _batch(dataset: int, request_ids: list[str]) -> jobs_pb2.BatchCreateJobsRequest:
    requests = [create_request(dataset, request_id=request_id) for request_id in request_ids]
    return jobs_pb2.BatchCreateJobsRequest(requests=requests)


def _by_request_id(request: jobs_pb2.BatchCreateJobsRequest, answer: object) -> dict[str, str]:
    assert isinstance(answer, jobs_pb2.BatchCreateJobsResponse), answer
    ids = [result.job.job_id for result in answer.results]
    return {entry.request_id: job_id for entry, job_id in zip(request.requests, ids, strict=True)}


def test_the_same_batch_in_opposed_orders_makes_one_set_of_jobs(replicas: list[World], dataset: int) -> None:
    clients = everywhere(replicas, writer(replicas, dataset))
    for _ in range(ROUNDS):
        ids = [str(uuid.uuid4()) for _ in range(JOBS)]
        batches = [_batch(dataset, order) for order in (ids, ids[::-1], sorted(ids), sorted(ids)[::-1])]
        calls = [(client, "BatchCreateJobs", batch) for client, batch in zip(clients, batches, strict=True)]

        answers = at_once(calls)

        told = [_by_request_id(batch, answer) for batch, answer in zip(batches, answers, strict=True)]
        assert all(one == told[0] for one in told)
        assert jobs_made(replicas[0], ids) == JOBS
        made = Counter(result.replayed for answer in answers for result in answer.results)
        assert made[False] == JOBS
        assert {len(history(replicas[0], job_id)) for job_id in list(told[0].values())[:5]} == {1}


def test_batches_that_share_some_request_ids_with_others_and_single_creates_make_each_job_once(
    replicas: list[World], dataset: int
) -> None:
    clients = everywhere(replicas, writer(replicas, dataset))
    for _ in range(ROUNDS):
        ids = [str(uuid.uuid4()) for _ in range(JOBS)]
        orders = [ids[:60], ids[:39:-1], ids[20:80][::-1]]
        batches = [_batch(dataset, order) for order in orders]
        singles = [create_request(dataset, request_id=one) for one in ids[::7]]
        calls = [
            *((client, "BatchCreateJobs", batch) for client, batch in zip(clients, batches, strict=False)),
            *((clients[n % 4], "CreateJob", one) for n, one in enumerate(singles)),
        ]

        answers = at_once(calls)

        told: dict[str, set[str]] = {}
        for batch, answer in zip(batches, answers, strict=False):
            for request_id, job_id in _by_request_id(batch, answer).items():
                told.setdefault(request_id, set()).add(job_id)
        for single, answer in zip(singles, answers[len(batches) :], strict=True):
            told.setdefault(single.request_id, set()).add(answer.job.job_id)
        assert {len(job_ids) for job_ids in told.values()} == {1}
        assert jobs_made(replicas[0], ids) == JOBS


def test_of_batches_that_want_another_job_for_one_request_id_one_makes_all_of_its_jobs_the_others_none(
    replicas: list[World], dataset: int
) -> None:
    clients = everywhere(replicas, writer(replicas, dataset))
    for _ in range(ROUNDS):
        shared = str(uuid.uuid4())
        batches = []
        for n, _ in enumerate(clients):
            batch = _batch(dataset, [str(uuid.uuid4()) for _ in range(20)])
            batch.requests.insert(n * 5, create_request(dataset, request_id=shared, description=f"of {n}"))
            batches.append(batch)

        answers = at_once([(c, "BatchCreateJobs", b) for c, b in zip(clients, batches, strict=True)])

        refusals = [answer for answer in answers if isinstance(answer, RichError)]
        assert len(refusals) == len(clients) - 1
        assert {refusal.reason for refusal in refusals} == {"REQUEST_ID_CONFLICT"}
        for n, (batch, answer) in enumerate(zip(batches, answers, strict=True)):
            others = [one.request_id for one in batch.requests if one.request_id != shared]
            lost = isinstance(answer, RichError)
            assert jobs_made(replicas[0], others) == (0 if lost else 20)
            if isinstance(answer, RichError):
                assert answer.metadata["index"] == str(n * 5)


def test_every_job_that_batches_and_calls_cancel_at_once_is_cancelled_by_exactly_one(
    replicas: list[World], dataset: int
) -> None:
    clients = everywhere(replicas, writer(replicas, dataset))
    for _ in range(ROUNDS):
        made = clients[0].batch_create([{"dataset_id": dataset}] * JOBS)
        ids = [result.job.job_id for result in made.results]
        calls = [
            (clients[0], "BatchCancelJobs", jobs_pb2.BatchCancelJobsRequest(job_ids=ids)),
            (clients[1], "BatchCancelJobs", jobs_pb2.BatchCancelJobsRequest(job_ids=ids[::-1])),
            (
                clients[2],
                "BatchCancelJobs",
                jobs_pb2.BatchCancelJobsRequest(filter=jobs_pb2.JobFilter(dataset_id=dataset)),
            ),
            *((clients[3], "CancelJob", jobs_pb2.CancelJobRequest(job_id=one)) for one in ids[::5]),
        ]

        answers = at_once(calls)

        won: Counter[str] = Counter()
        for answer in answers[:3]:
            for result in answer.results:
                if result.HasField("job"):
                    won[result.job_id] += 1
                else:
                    assert result.error.reason == errors_pb2.ERROR_REASON_JOB_NOT_CANCELLABLE, result
        won.update(answer.job.job_id for answer in answers[3:] if not isinstance(answer, RichError))
        assert won == Counter(ids)
        assert {tuple(history(replicas[0], job_id)) for job_id in ids[:10]} == {("CREATED", "CANCELLED")}
