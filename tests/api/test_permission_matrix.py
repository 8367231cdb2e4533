"""The permission matrix, complete: RPC x role x relation to the job x level x status.

What is expected is written here a second time, from the contract's words and not from the tables of
core/permissions.py. An answer is compared as one line of text: code, reason, metadata.
"""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from jobs.v1 import errors_pb2, jobs_pb2
from jobs_service.model.caller import Level, Role
from jobs_service.model.job import JobStatus, RunType
from tests.support.client import Client, rich_error
from tests.support.world import User, World

THREADS = 8

LEVELS = {"none": None, "read": Level.READ, "write": Level.WRITE, "admin": Level.ADMIN}
ALLOWED: dict[str, set[str]] = {
    "none": set(),
    "read": {"see", "explore", "use as a source"},
    "write": {"see", "explore", "use as a source", "write", "cancel"},
    "admin": {"see", "explore", "use as a source", "write", "cancel"},
    "missing": set(),
}
"""What a level on the data set lets somebody do; missing: there is no such data set."""

SENDERS = {Role.SERVICE, Role.ADMIN}
"""Who may call on behalf of a user."""

ITSELF = ("itself", "itself, named in the header")
ACTS_FOR = (*ITSELF, "the owner", "another user")

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

ROLE_REQUIRED = "PERMISSION_DENIED ROLE_REQUIRED required_role"
JOB_NOT_FOUND = "NOT_FOUND JOB_NOT_FOUND job_id=<it>"
JOB_DENIED = "PERMISSION_DENIED JOB_PERMISSION_DENIED job_id=<it> required_permission=write"


def answer(call: Callable[[], str], names: dict[str, str]) -> str:
    """What a call answered as one line. names: what to write in place of ids."""
    try:
        return call()
    except grpc.RpcError as error:
        rich = rich_error(error)
    values = [f"{key}={names.get(value, value)}" for key, value in sorted(rich.metadata.items())]
    if rich.reason == "ROLE_REQUIRED":
        values = sorted(rich.metadata)
    return " ".join([rich.code, rich.reason, *values])


def in_threads(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, items))


def assert_none(wrong: Sequence[str]) -> None:
    assert not wrong, "\n".join([f"{len(wrong)} cells are wrong, the first:", *wrong[:25]])


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


class Cast:
    """A sender, the owner of the jobs it does not own itself, and another user."""

    def __init__(self, world: World) -> None:
        self.world = world
        # A service while the stage is set, so that it can make jobs for the owner.
        self.sender = world.user(Role.SERVICE)
        self.owner = world.user()
        self.other = world.user()

    def client(self, acts_for: str) -> Client:
        subject = {
            "itself": None,
            "itself, named in the header": self.sender,
            "the owner": self.owner,
            "another user": self.other,
        }[acts_for]
        return self.world.client(self.sender, on_behalf_of=subject)

    def set_level(self, user: User, dataset_id: int, level: Level | None) -> None:
        if level is None:
            self.world.access.revoke(user.soeid, dataset_id)
        else:
            self.world.access.grant(user.soeid, dataset_id, level)


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


@dataclass(frozen=True, slots=True)
class CreateCell:
    """A CreateJob. levels: of who counts; the other of the two has the opposite, so that a mix-up shows."""

    role: Role
    acts_for: str
    run_type: RunType
    validate_only: bool
    level: str
    source_levels: tuple[str, ...] = ()


OPPOSITE = {"none": "admin", "read": "write", "write": "read", "admin": "none"}
PARAMETERS: dict[RunType, dict[str, Any]] = {
    RunType.IMPORT: {"file_path": "landing/a.csv"},
    RunType.SAMPLING: {"sample_size": 10},
    RunType.EXPLORATION: {"table_key": "primary"},
}


def create_cells(role: Role, acts_for: str) -> list[CreateCell]:
    plain = itertools.product(PARAMETERS, (False, True), ALLOWED)
    sources = [*itertools.product(ALLOWED), *itertools.product(ALLOWED, ALLOWED)]
    return [
        *(CreateCell(role, acts_for, *rest) for rest in plain),
        *(
            CreateCell(role, acts_for, RunType.SQL_TRANSFORM, *rest)
            for rest in itertools.product((False, True), ALLOWED, sources)
        ),
    ]


def expected_of_create(cell: CreateCell) -> set[str]:
    """What may be answered: where two data sets are refused, it may name either."""
    alone = cell.acts_for in ITSELF
    if not alone and cell.role not in SENDERS:
        return {ROLE_REQUIRED}
    levels = {"target": cell.level} | dict(zip(("first", "second"), cell.source_levels, strict=False))
    if alone and cell.role is Role.ADMIN:
        missing = {name for name, level in levels.items() if level == "missing"}
        return {f"NOT_FOUND DATASET_NOT_FOUND dataset_id=<{name}>" for name in missing} or {"OK"}
    needed = {"target": ("explore", "read") if cell.run_type is RunType.EXPLORATION else ("write", "write")}
    needed |= dict.fromkeys(("first", "second"), ("use as a source", "read"))
    return {
        f"PERMISSION_DENIED DATASET_PERMISSION_DENIED dataset_id=<{name}> required_permission={word}"
        for name, (action, word) in needed.items()
        if name in levels and action not in ALLOWED[levels[name]]
    } or {"OK"}


class CreateStage(Cast):
    """For each level three data sets: one to write, two to read from."""

    def __init__(self, world: World, role: Role, acts_for: str) -> None:
        super().__init__(world)
        self.subject = self.sender if acts_for in ITSELF else self.other
        other = self.other if self.subject is self.sender else self.sender
        self.datasets = {pair: world.dataset() for pair in itertools.product(LEVELS, self.places)}
        for (level, _), dataset_id in self.datasets.items():
            self.set_level(self.subject, dataset_id, LEVELS[level])
            self.set_level(other, dataset_id, LEVELS[OPPOSITE[level]])
        self.datasets |= {("missing", place): 900_000_000 + n for n, place in enumerate(self.places)}
        world.access.put_user(self.sender.soeid, role)

    places = ("target", "first", "second")

    def answer(self, client: Client, cell: CreateCell) -> str:
        dataset_id = self.datasets[cell.level, "target"]
        places = dict(zip(self.places[1:], cell.source_levels, strict=False))
        sources = {place: self.datasets[level, place] for place, level in places.items()}
        names = {str(number): f"<{place}>" for place, number in {"target": dataset_id, **sources}.items()}
        sql = {
            "sql": "select 1",
            "sources": [{"dataset_id": number, "alias": place} for place, number in sources.items()],
        }

        def create() -> str:
            job = client.create(
                dataset_id=dataset_id,
                run_type=jobs_pb2.RunType.Value(f"RUN_TYPE_{cell.run_type}"),
                run_parameters=PARAMETERS.get(cell.run_type, sql),
                validate_only=cell.validate_only,
            ).job
            creator = "" if self.subject is self.sender else self.sender.soeid
            right = (job.user_soeid, job.creator_soeid) == (self.subject.soeid, creator)
            return "OK" if right and bool(job.job_id) != cell.validate_only else f"OK, but it is {job}"

        return answer(create, names)


@pytest.mark.parametrize("acts_for", [*ITSELF, "another user"])
@pytest.mark.parametrize("role", Role)
def test_a_job_is_created_by_whom_the_contract_allows(world: World, role: Role, acts_for: str) -> None:
    cells = create_cells(role, acts_for)
    stage = CreateStage(world, role, acts_for)
    client = stage.client(acts_for)
    answers = in_threads(lambda cell: stage.answer(client, cell), cells)
    assert_none(
        [
            f"CreateJob of {cell}: got '{got}', expected one of {expected_of_create(cell)}"
            for cell, got in zip(cells, answers, strict=True)
            if got not in expected_of_create(cell)
        ]
    )


INVALID_HEADER = "INVALID_ARGUMENT INVALID_FIELD field=x-on-behalf-of"
USER_NOT_FOUND = "NOT_FOUND USER_NOT_FOUND user_soeid=<them>"
# Who is named: what a user, what a service or an admin that names them is answered.
NAMED = {
    "itself": ("OK", "OK"),
    "itself, in capitals": ("OK", "OK"),
    "a user": (ROLE_REQUIRED, "OK"),
    "a user, in capitals": (ROLE_REQUIRED, "OK"),
    "a service": (ROLE_REQUIRED, ROLE_REQUIRED),
    "an admin": (ROLE_REQUIRED, ROLE_REQUIRED),
    "nobody": (ROLE_REQUIRED, USER_NOT_FOUND),
    "a user who is gone": (ROLE_REQUIRED, USER_NOT_FOUND),
    "no SOEID": (INVALID_HEADER, INVALID_HEADER),
}


@pytest.mark.parametrize("rpc", ["CreateJob", "ListJobs", "GetJob", "GetJobStatus", "CancelJob"])
@pytest.mark.parametrize("role", Role)
def test_on_behalf_calls_are_for_programs_and_users_alone(world: World, role: Role, rpc: str) -> None:
    dataset = world.dataset()
    grants = {dataset: Level.WRITE}
    sender, user, gone = world.user(role, grants), world.user(grants=grants), world.user()
    service, admin = world.user(Role.SERVICE, grants), world.user(Role.ADMIN, grants)
    world.sql.execute("DELETE FROM users WHERE user_id = %s", (gone.user_id,))
    headers = {
        "itself": sender.soeid,
        "itself, in capitals": sender.soeid.upper(),
        "a user": user.soeid,
        "a user, in capitals": user.soeid.upper(),
        "a service": service.soeid,
        "an admin": admin.soeid,
        "nobody": "zz99999",
        "a user who is gone": gone.soeid,
        "no SOEID": "somebody",
    }
    maker = world.client(user)

    def ask(header: str) -> str:
        client = world.client(sender, on_behalf_of=header)
        if rpc in {"CreateJob", "ListJobs"}:
            _ = client.create(dataset_id=dataset) if rpc == "CreateJob" else client.list()
        else:
            message = getattr(jobs_pb2, f"{rpc}Request")(job_id=maker.create(dataset_id=dataset).job.job_id)
            client.call(rpc, message)
        return "OK"

    wrong = []
    for named, header in headers.items():
        got = answer(lambda header=header: ask(header), {header: "<them>"})  # type: ignore[misc] # mypy infers no type for a default
        expected = NAMED[named][role in SENDERS]
        if got != expected:
            wrong.append(f"{rpc} of {role} for {named}: got '{got}', expected '{expected}'")
    assert_none(wrong)
