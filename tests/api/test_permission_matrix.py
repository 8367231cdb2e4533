"""The permission matrix, complete: RPC x role x relation to the job x level x status.

What is expected is written here a second time, from the contract's words and not from the tables of
core/permissions.py. An answer is compared as one line of text: code, reason, metadata.
CreateJob has a matrix of its own, in test_create_permissions.py.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
import pytest

from jobs.v1 import errors_pb2, jobs_pb2
from jobs_service.model.caller import Level, Role
from jobs_service.model.job import JobStatus
from tests.support.client import Client
from tests.support.matrix import (
    ACTS_FOR,
    ALLOWED,
    ITSELF,
    LEVELS,
    ROLE_REQUIRED,
    SENDERS,
    Cast,
    answer,
    assert_none,
    in_threads,
)
from tests.support.world import World

JOB_RPCS = (
    "ListJobs without a filter",
    "GetJob",
    "GetJobStatus",
    "BatchGetJobs",
    "ListJobs",
    "CancelJob",
    "BatchCancelJobs",
    "BatchCancelJobs by a filter",
)
"""In the order in which one job is asked for: the cancels come last, each of a job of its own."""

OF_A_BATCH, BY_A_FILTER = " of a batch", " by a filter"


JOB_NOT_FOUND = "NOT_FOUND JOB_NOT_FOUND job_id=<it>"
JOB_DENIED = "PERMISSION_DENIED JOB_PERMISSION_DENIED job_id=<it> required_permission=write"


@dataclass(frozen=True, slots=True)
class JobCell:
    """Somebody, and a job. acts_for: one of ACTS_FOR; level: on the job's data set."""

    role: Role
    acts_for: str
    relation: str
    """What the sender itself is to the job: owner, creator, neither."""
    own_level: str
    others_level: str
    """The level of the user it acts for."""
    status: JobStatus


def job_cells(role: Role, acts_for: str) -> list[JobCell]:
    alone = acts_for in ITSELF
    # For the owner of its own job: that is itself.
    relations = ("creator", "neither") if acts_for == "the owner" else ("owner", "creator", "neither")
    # The sender's own level must not count on behalf of somebody: then its extremes show enough.
    levels = (LEVELS, ["none"]) if alone else (["none", "admin"], LEVELS)
    return [JobCell(role, acts_for, *rest) for rest in itertools.product(relations, *levels, JobStatus)]


def expected_of_job(cell: JobCell, rpc: str) -> str:
    """What the contract says that this cell is answered."""
    alone = cell.acts_for in ITSELF
    if not alone and cell.role not in SENDERS:
        return ROLE_REQUIRED
    # On behalf of a user the call has exactly that user's permissions.
    relation = cell.relation if alone else {"the owner": "owner", "another user": "neither"}[cell.acts_for]
    level = cell.own_level if alone else cell.others_level
    all_powerful = alone and cell.role is Role.ADMIN
    own = relation in {"owner", "creator"}
    visible = all_powerful or own or "see" in ALLOWED[level]
    if rpc.startswith("ListJobs"):
        return "OK, with the job" if visible else "OK, without the job"
    if rpc == "BatchCancelJobs by a filter":
        may = all_powerful or own or "cancel" in ALLOWED[level]
        active = cell.status in {JobStatus.PENDING, JobStatus.RUNNING}
        return "OK, with the job" if may and active else "OK, without the job"
    if not visible:
        return JOB_NOT_FOUND
    if rpc in {"CancelJob", "BatchCancelJobs"}:
        if not (all_powerful or own or "cancel" in ALLOWED[level]):
            return JOB_DENIED
        if cell.status not in {JobStatus.PENDING, JobStatus.RUNNING}:
            who = " cancelled_by=us00000" if cell.status is JobStatus.CANCELLED else ""
            return f"FAILED_PRECONDITION JOB_NOT_CANCELLABLE{who} job_id=<it> status={cell.status.value}"
    return "OK"


class JobStage(Cast):
    """A job for each cell, on the data set that has the cell's levels."""

    def __init__(self, world: World, cells: Sequence[JobCell]) -> None:
        super().__init__(world)
        pairs = {(cell.own_level, cell.others_level) for cell in cells}
        self.datasets = {pair: world.dataset() for pair in sorted(pairs)}
        for dataset_id, user in itertools.product(self.datasets.values(), (self.sender, self.owner)):
            self.set_level(user, dataset_id, Level.WRITE)
        makers = {
            "owner": world.client(self.sender),
            "creator": world.client(self.sender, on_behalf_of=self.owner),
            "neither": world.client(self.owner),
        }

        def make(cell: JobCell) -> list[jobs_pb2.Job]:
            dataset_id = self.datasets[cell.own_level, cell.others_level]
            names = [self.name(cell) + more for more in ("", OF_A_BATCH, BY_A_FILTER)]
            answer = makers[cell.relation].batch_create(
                [{"dataset_id": dataset_id, "external_id": name} for name in names]
            )
            return [result.job for result in answer.results]

        made = dict(zip(cells, in_threads(make, cells), strict=True))
        self.jobs = {cell: jobs[0] for cell, jobs in made.items()}
        self.of_a_batch = {cell: jobs[1] for cell, jobs in made.items()}
        self.by_a_filter = {cell: jobs[2] for cell, jobs in made.items()}
        for cell, jobs in made.items():
            for job in jobs if cell.status is not JobStatus.PENDING else ():
                world.set_status(job.job_id, cell.status)
        self.since = min((job.create_time for job in self.jobs.values()), key=lambda time: time.ToDatetime())
        self._final_permissions(cells[0])

    def _final_permissions(self, cell: JobCell) -> None:
        for (own_level, others_level), dataset_id in self.datasets.items():
            self.set_level(self.sender, dataset_id, LEVELS[own_level])
            for user in (self.owner, self.other):
                self.set_level(user, dataset_id, LEVELS[others_level])
        self.world.access.put_user(self.sender.soeid, cell.role)

    def name(self, cell: JobCell) -> str:
        return f"{self.sender.soeid} {cell.relation} {cell.own_level} {cell.others_level} {cell.status}"


def listed_without_a_filter(stage: JobStage, client: Client) -> Callable[[JobCell], str]:
    """Page through everything once; the bound only spares the admin what other tests have made."""

    def everything() -> str:
        for page in client.pages(filter={"create_time_from": stage.since}, page_size=1000):
            found.update(job.job_id for job in page.jobs)
        return ""

    found: set[str] = set()
    refused = answer(everything, {})
    return lambda cell: refused or f"OK, {'with' if stage.jobs[cell].job_id in found else 'without'} the job"


def asked(stage: JobStage, client: Client, cell: JobCell, rpc: str) -> str:
    """What one cell is answered."""
    job_id = stage.jobs[cell].job_id
    status = jobs_pb2.JobStatus.Value(f"JOB_STATUS_{cell.status}")

    def get() -> str:
        return "OK" if client.get(job_id).status == status else "OK, but not its status"

    def get_status() -> str:
        return "OK" if client.status(job_id).status == status else "OK, but not its status"

    def cancel() -> str:
        cancelled = client.cancel(job_id).status == jobs_pb2.JOB_STATUS_CANCELLED
        return "OK" if cancelled else "OK, but not cancelled"

    def list_one() -> str:
        page = client.list(filter={"external_id": stage.name(cell)}, include_total_size=True)
        ids = [job.job_id for job in page.jobs]
        assert page.total_size == len(ids)
        return f"OK, {'with' if ids == [job_id] else 'without'} the job"

    def get_many() -> str:
        return item(client.batch_get([job_id]).results, job_id, status)

    def cancel_many() -> str:
        one = stage.of_a_batch[cell].job_id
        return item(client.batch_cancel([one]).results, one, jobs_pb2.JOB_STATUS_CANCELLED)

    def cancel_by_a_filter() -> str:
        results = client.batch_cancel(filter={"external_id": stage.name(cell) + BY_A_FILTER}).results
        ids = [result.job.job_id for result in results]
        return f"OK, {'with' if ids == [stage.by_a_filter[cell].job_id] else 'without'} the job"

    calls = {
        "GetJob": get,
        "GetJobStatus": get_status,
        "ListJobs": list_one,
        "CancelJob": cancel,
        "BatchGetJobs": get_many,
        "BatchCancelJobs": cancel_many,
        "BatchCancelJobs by a filter": cancel_by_a_filter,
    }
    return answer(calls[rpc], {job_id: "<it>"})


def item(results: Sequence[jobs_pb2.JobResult], job_id: str, status: int) -> str:
    """What a batch answered of its only job, as one line."""
    [result] = results
    if result.HasField("job"):
        return "OK" if (result.job_id, result.job.status) == (job_id, status) else "OK, but another"
    code = next(one.name for one in grpc.StatusCode if one.value[0] == result.error.code)
    reason = errors_pb2.ErrorReason.Name(result.error.reason).removeprefix("ERROR_REASON_")
    metadata = sorted(result.error.metadata.items())
    values = [f"{key}={'<it>' if value == job_id else value}" for key, value in metadata]
    return " ".join([code, reason, *values])


@pytest.mark.parametrize("acts_for", ACTS_FOR)
@pytest.mark.parametrize("role", Role)
def test_a_job_is_shown_listed_and_cancelled_by_whom_the_contract_allows(
    world: World, role: Role, acts_for: str
) -> None:
    cells = job_cells(role, acts_for)
    stage = JobStage(world, cells)
    client = stage.client(acts_for)
    without_filter = listed_without_a_filter(stage, client)

    def wrong_of(cell: JobCell) -> list[str]:
        wrong = []
        for rpc in JOB_RPCS:
            unfiltered = rpc == "ListJobs without a filter"
            got = without_filter(cell) if unfiltered else asked(stage, client, cell, rpc)
            expected = expected_of_job(cell, rpc)
            if got != expected:
                wrong.append(f"{rpc} of {cell}: got '{got}', expected '{expected}'")
        return wrong

    assert_none(list(itertools.chain.from_iterable(in_threads(wrong_of, cells))))
