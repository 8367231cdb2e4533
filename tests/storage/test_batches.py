"""Calls about many jobs: a constant number of statements, and nothing written where one is refused."""

import hashlib
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from jobs_service.core.job_service import JobService
from jobs_service.model.caller import Caller, Level
from jobs_service.model.errors import DatasetPermissionDenied, JobNotFound
from jobs_service.model.job import Job, JobStatus, JobView, NewJob, RunType
from jobs_service.model.requests import BatchCancelRequest, BatchGetRequest, CreateRequest, JobFilter
from tests.support.plans import sent
from tests.support.world import World

FEW, MANY = 3, 1_000


class Setting:
    """A service on a database, and somebody who may write a data set."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.service = JobService(world.database)
        self.dataset = world.dataset()
        self.caller = world.user(grants={self.dataset: Level.WRITE}).caller

    def requests(self, count: int, **fields: Any) -> list[CreateRequest]:
        """Requests of so many jobs, each with an id of its own."""
        jobs = [new_job(fields | {"request_id": uuid.uuid4()}, self.dataset) for _ in range(count)]
        return [CreateRequest(self.caller, job) for job in jobs]

    def graph(self, count: int) -> list[CreateRequest]:
        """Requests of which each waits for the one before it, and one for another job."""
        outside = self.ids(1)[0]
        one, *others = self.requests(count, depends_on=(outside,))
        plain = self.requests(len(others))
        return [
            one,
            *(CreateRequest(self.caller, request.job, None, (place,)) for place, request in enumerate(plain)),
        ]

    def ids(self, count: int) -> list[uuid.UUID]:
        """The ids of so many new jobs."""
        return [result.job.job_id for result in self.service.create_batch(self.requests(count))]

    def cancel(self, **choice: Any) -> int:
        """Cancel what is chosen; of how many jobs there are results."""
        request = BatchCancelRequest(caller=self.caller, **choice)
        return len(self.service.cancel_batch(request, seconds=60).results)


def new_job(fields: dict[str, Any], dataset: int) -> NewJob:
    """An import."""
    parameters = {"file_path": "landing/a.csv"}
    described = hashlib.sha256(repr(sorted(fields.items(), key=str)).encode()).digest()
    plain: dict[str, Any] = {
        "dataset_id": dataset,
        "run_type": RunType.IMPORT,
        "run_parameters": parameters,
        "payload_bytes": 29,
        "request_hash": described,
    }
    return NewJob(**(plain | fields))


@pytest.fixture
def setting(stored_world: World) -> Setting:
    return Setting(stored_world)


def _create(setting: Setting, count: int) -> Callable[[], object]:
    requests = setting.requests(count)
    return lambda: setting.service.create_batch(requests)


def _create_graph(setting: Setting, count: int) -> Callable[[], object]:
    requests = setting.graph(count)
    return lambda: setting.service.create_batch(requests)


def _replay(setting: Setting, count: int) -> Callable[[], object]:
    requests = setting.requests(count)
    setting.service.create_batch(requests)
    return lambda: setting.service.create_batch(requests)


def _get(view: JobView) -> Callable[[Setting, int], Callable[[], object]]:
    def prepared(setting: Setting, count: int) -> Callable[[], object]:
        request = BatchGetRequest(setting.caller, tuple(setting.ids(count)), view)
        return lambda: setting.service.get_batch(request, seconds=60)

    return prepared


def _cancel_by_ids(setting: Setting, count: int) -> Callable[[], object]:
    ids = tuple(setting.ids(count))
    return lambda: setting.cancel(job_ids=ids)


def _cancel_by_filter(setting: Setting, count: int) -> Callable[[], object]:
    setting.ids(count)
    return lambda: setting.cancel(filter=JobFilter(dataset_id=setting.dataset))


CALLS = {
    "create": (_create, 15),
    "create a graph": (_create_graph, 20),
    "create again": (_replay, 10),
    "get BASIC": (_get(JobView.BASIC), 2),
    "get FULL": (_get(JobView.FULL), 3),
    "cancel by ids": (_cancel_by_ids, 20),
    "cancel by a filter": (_cancel_by_filter, 23),
}
"""How each call is prepared for a number of jobs, and the most statements that it may take."""


@pytest.mark.parametrize(("prepared", "most"), CALLS.values(), ids=CALLS)
def test_the_number_of_statements_does_not_grow_with_the_jobs(
    setting: Setting, prepared: Callable[[Setting, int], Callable[[], object]], most: int
) -> None:
    few = len(sent(setting.world.database, prepared(setting, FEW)))
    many = len(sent(setting.world.database, prepared(setting, MANY)))
    assert many == few <= most


def test_nothing_is_written_when_the_last_of_a_thousand_is_refused(setting: Setting) -> None:
    requests = setting.requests(MANY - 1)
    closed = new_job({}, setting.world.dataset())
    before = setting.world.counts()
    with pytest.raises(DatasetPermissionDenied) as denied:
        setting.service.create_batch([*requests, CreateRequest(setting.caller, closed)])
    assert denied.value.metadata["index"] == str(MANY - 1)
    assert setting.world.counts() == before


def test_payloads_are_read_no_further_than_the_answer_holds(setting: Setting) -> None:
    large = {"file_path": "a.csv", "note": "x" * 250_000}
    requests = setting.requests(20, run_parameters=large, payload_bytes=250_030)
    ids = [result.job.job_id for result in setting.service.create_batch(requests)]
    missing = uuid.uuid4()
    request = BatchGetRequest(setting.caller, (missing, *ids), JobView.FULL)

    results = setting.service.get_batch(request, seconds=60)

    assert isinstance(results[0], JobNotFound)
    shown = [result for result in results[1:] if isinstance(result, Job)]
    assert [job.job_id for job in shown] == ids[: len(shown)]
    assert len(shown) == 3 * 2**20 // 250_030
    assert all(job.run_parameters == large for job in shown)


def test_only_what_can_be_cancelled_is_chosen_newest_first_and_no_more_than_the_limit(
    setting: Setting,
) -> None:
    ids = [setting.ids(1)[0] for _ in range(5)]
    setting.world.set_status(ids[3], JobStatus.COMPLETED)
    request = BatchCancelRequest(
        caller=setting.caller, filter=JobFilter(dataset_id=setting.dataset), limit=2, reason="r"
    )
    first = setting.service.cancel_batch(request, seconds=60)
    second = setting.service.cancel_batch(request, seconds=60)
    assert [job_id for job_id, _ in first.results] == [ids[4], ids[2]]
    assert [job_id for job_id, _ in second.results] == [ids[1], ids[0]]
    assert (first.more, second.more) == (True, False)


@pytest.mark.parametrize("status", [JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED])
def test_a_filter_for_what_has_ended_asks_the_database_nothing(setting: Setting, status: JobStatus) -> None:
    wanted = JobFilter(dataset_id=setting.dataset, statuses=frozenset({status}))
    with setting.world.database.snapshot(seconds=60) as tx:
        assert not sent(
            setting.world.database, lambda: tx.job_choice.cancellable(setting.caller.user_id, wanted, limit=9)
        )


def test_who_is_nobody_any_more_gets_no_results(setting: Setting) -> None:
    [job_id] = setting.ids(1)
    gone = Caller("us99999", 2**40)
    for choice in ({"job_ids": (job_id,)}, {"filter": JobFilter(dataset_id=setting.dataset)}):
        with pytest.raises(Exception, match="us99999 is not known"):
            setting.service.cancel_batch(BatchCancelRequest(caller=gone, **choice), seconds=60)
