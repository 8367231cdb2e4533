"""Who may call what of WorkersService: every role, every RPC, run types granted and not, and others' jobs."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import grpc
import pytest

from jobs.v1 import jobs_pb2, workers_pb2
from jobs_service.model.caller import Level, Role
from jobs_service.model.job import RunType
from tests.support.client import WorkerClient, rich_error
from tests.support.world import User, World

IMPORT = jobs_pb2.RUN_TYPE_IMPORT
SAMPLING = jobs_pb2.RUN_TYPE_SAMPLING
RPCS = ["ClaimJobs", "HeartbeatJobs", "CompleteJob", "FailJob", "ReleaseJob", "FinishJobs"]
ROLE_REQUIRED = "PERMISSION_DENIED ROLE_REQUIRED required_role=service"
MISSING = "UNAUTHENTICATED CREDENTIALS_MISSING"


def call_of(worker: WorkerClient, rpc: str, lease: Any) -> Callable[[], Any]:
    calls: dict[str, Callable[[], Any]] = {
        "ClaimJobs": lambda: worker.claim(run_types=[SAMPLING]),
        "HeartbeatJobs": lambda: worker.heartbeat(lease),
        "CompleteJob": lambda: worker.complete(lease),
        "FailJob": lambda: worker.fail(lease),
        "ReleaseJob": lambda: worker.release(lease),
        "FinishJobs": lambda: worker.finish(
            {"complete": {"job_id": lease.job_id, "lease_token": lease.lease_token}}
        ),
    }
    return calls[rpc]


def answer(call: Callable[[], Any], job_id: str = "") -> str:
    """The refusal as one line, "OK", or what FinishJobs or HeartbeatJobs say of their one item."""
    try:
        response = call()
    except grpc.RpcError as error:
        rich = rich_error(error)
        values = [
            f"{key}={'<it>' if value == job_id else value}" for key, value in sorted(rich.metadata.items())
        ]
        return " ".join([rich.code, rich.reason, *values])
    if isinstance(response, list):
        (result,) = response
        if isinstance(result, workers_pb2.HeartbeatResult):
            return str(result.WhichOneof("result"))
        return f"item error {result.error.code}" if result.HasField("error") else "OK"
    return "OK"


def lease_of_nobody() -> workers_pb2.Heartbeat:
    return workers_pb2.Heartbeat(job_id=str(uuid4()), lease_token="f" * 32)


def held(world: World) -> tuple[User, workers_pb2.Claim, workers_pb2.Heartbeat]:
    """A service user with a claim of an import, and its lease."""
    dataset = world.dataset()
    world.client(world.user(grants={dataset: Level.WRITE})).create(dataset_id=dataset)
    user = world.service_user([RunType.IMPORT])
    claim = world.worker(user=user).claim_one()
    return user, claim, workers_pb2.Heartbeat(job_id=claim.job.job_id, lease_token=claim.lease_token)


@pytest.mark.parametrize("rpc", RPCS)
def test_who_is_neither_a_service_nor_an_admin_is_refused_whatever_it_names(
    work_world: World, rpc: str
) -> None:
    _, _, lease = held(work_world)
    user = work_world.user(grants={work_world.dataset(): Level.ADMIN})
    work_world.access.grant_run_type(user.soeid, RunType.SAMPLING)
    worker = work_world.worker(user=user)
    assert answer(call_of(worker, rpc, lease)) == ROLE_REQUIRED
    assert answer(call_of(worker, rpc, lease_of_nobody())) == ROLE_REQUIRED


@pytest.mark.parametrize("rpc", RPCS)
def test_without_credentials_nobody_is_let_in(work_world: World, rpc: str) -> None:
    worker = WorkerClient(work_world.channel(), None)
    assert answer(call_of(worker, rpc, lease_of_nobody())) == MISSING


def on_behalf_of(world: World, sender: User, soeid: str) -> WorkerClient:
    worker = world.worker(user=sender)
    worker.metadata += (("x-on-behalf-of", soeid),)
    return worker


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.parametrize("role", Role)
def test_nobody_works_on_behalf_of_anybody(work_world: World, rpc: str, role: Role) -> None:
    sender, _, lease = held(work_world)
    work_world.access.put_user(sender.soeid, role)
    before = work_world.client(work_world.user(Role.ADMIN)).get(lease.job_id)
    for subject in (work_world.user(), work_world.service_user(), work_world.user(Role.ADMIN)):
        worker = on_behalf_of(work_world, sender, subject.soeid)
        assert answer(call_of(worker, rpc, lease)) == ROLE_REQUIRED
    nobody = on_behalf_of(work_world, sender, "zz99999")
    refusal = ROLE_REQUIRED if role is Role.USER else "NOT_FOUND USER_NOT_FOUND user_soeid=zz99999"
    assert answer(call_of(nobody, rpc, lease)) == refusal
    assert work_world.client(work_world.user(Role.ADMIN)).get(lease.job_id) == before


@pytest.mark.parametrize("rpc", RPCS)
def test_who_names_itself_in_the_header_works_as_without_it(work_world: World, rpc: str) -> None:
    user, _, lease = held(work_world)
    work_world.access.grant_run_type(user.soeid, RunType.SAMPLING)
    worker = on_behalf_of(work_world, user, user.soeid.upper())
    assert answer(call_of(worker, rpc, lease)) in {"OK", "lease_expire_time"}


@pytest.mark.parametrize("role", [Role.SERVICE, Role.ADMIN])
@pytest.mark.parametrize("granted", [(), (RunType.IMPORT,), (RunType.SAMPLING,)], ids=str)
def test_a_claim_needs_the_run_type_or_an_admin(
    work_world: World, role: Role, granted: tuple[RunType, ...]
) -> None:
    user = work_world.user(role)
    for run_type in granted:
        work_world.access.grant_run_type(user.soeid, run_type)
    worker = work_world.worker(user=user)
    allowed = role is Role.ADMIN or RunType.SAMPLING in granted
    expected = "OK" if allowed else f"{ROLE_REQUIRED} run_type=SAMPLING"
    assert answer(lambda: worker.claim(run_types=[SAMPLING])) == expected
    both = answer(lambda: worker.claim(run_types=[SAMPLING, IMPORT]))
    assert (both == "OK") == (role is Role.ADMIN or bool(granted))


def test_a_grant_and_its_end_count_from_the_next_claim_on(work_world: World) -> None:
    user = work_world.user(Role.SERVICE)
    worker = work_world.worker(user=user)
    assert answer(worker.claim).startswith(ROLE_REQUIRED)
    work_world.access.grant_run_type(user.soeid, RunType.IMPORT)
    assert answer(worker.claim) == "OK"
    work_world.access.put_user(user.soeid, Role.USER)
    assert answer(worker.claim) == ROLE_REQUIRED


@pytest.mark.parametrize("rpc", ["CompleteJob", "FailJob", "ReleaseJob"])
@pytest.mark.parametrize("who", ["granted", "not granted", "admin"])
def test_without_the_token_a_job_is_seen_by_those_alone_who_work_on_its_kind(
    work_world: World, rpc: str, who: str
) -> None:
    _, claim, lease = held(work_world)
    users = {
        "granted": lambda: work_world.service_user([RunType.IMPORT]),
        "not granted": lambda: work_world.service_user([RunType.SAMPLING]),
        "admin": lambda: work_world.user(Role.ADMIN),
    }
    worker = work_world.worker(user=users[who]())
    wrong = workers_pb2.Heartbeat(job_id=lease.job_id, lease_token="f" * 32)
    lost = "FAILED_PRECONDITION LEASE_LOST attempt=1 job_id=<it> status=RUNNING"
    missing = "NOT_FOUND JOB_NOT_FOUND job_id=<it>"
    expected = missing if who == "not granted" else lost
    assert answer(call_of(worker, rpc, wrong), lease.job_id) == expected
    nothing = lease_of_nobody()
    assert answer(call_of(worker, rpc, nothing), nothing.job_id) == missing
    assert answer(call_of(worker, "HeartbeatJobs", wrong)) == "lost"
    (status,) = work_world.sql.execute("SELECT status FROM jobs WHERE job_id = %s", (lease.job_id,))
    assert status == ("RUNNING",)
    assert claim.attempt == 1


@pytest.mark.parametrize("rpc", ["HeartbeatJobs", "CompleteJob", "FailJob", "ReleaseJob", "FinishJobs"])
def test_whoever_has_the_token_decides(work_world: World, rpc: str) -> None:
    _, _, lease = held(work_world)
    other = work_world.worker(user=work_world.service_user([RunType.SAMPLING]))
    expected = "lease_expire_time" if rpc == "HeartbeatJobs" else "OK"
    assert answer(call_of(other, rpc, lease)) == expected
