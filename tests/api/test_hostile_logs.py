"""The log is no way out and no way in: it holds nothing that callers wrote, and its lines are ours alone."""

import json
import uuid
from typing import Any

import pytest

from jobs.v1 import jobs_pb2
from jobs_service.model.caller import Level, Role
from tests.support.judge import METHODS, Judge, message
from tests.support.service import ServiceProcess, wait_until
from tests.support.world import World

FORGED = '\r\n{"level":"ERROR","message":"forged"}\n\x1b[2J\x07\u2028\u202e'


def marked(mark: str) -> list[tuple[str, dict[str, Any]]]:
    """Requests with a mark, line ends and escapes in every text that they have: good and refused ones."""
    text = mark + FORGED
    parameters = {"file_path": text, text: [text, {text: text}]}
    create: dict[str, Any] = {"run_type": 1, "run_parameters": parameters, "description": text}
    create["external_id"] = text
    return [
        ("CreateJob", create),
        ("CreateJob", create | {"run_type": 2, "run_parameters": parameters | {"rounds": text}}),
        ("CreateJob", create | {"dataset_id": 999_999}),
        ("CreateJob", create | {"request_id": text}),
        ("CreateJob", create | {"source_commit_id": text, "priority": -1}),
        ("CreateJob", create | {"description": text * 100}),
        ("ListJobs", {"filter": {"external_id": text}, "page_token": text}),
        ("ListJobs", {"filter": {"user_soeid": text}}),
        ("GetJob", {"job_id": text}),
        ("GetJobStatus", {"job_id": text}),
        ("CancelJob", {"job_id": text, "reason": text}),
        ("CancelJob", {"job_id": str(uuid.uuid4()), "reason": text}),
    ]


@pytest.fixture
def log(shared_service: tuple[str, ServiceProcess]) -> ServiceProcess:
    return shared_service[1]


def text_of(log: ServiceProcess, correlation_id: str) -> str:
    """The whole log, once the call with this id stands in it."""
    wait_until(lambda: correlation_id in log.log_file.read_text(), 10, "the last call in the log")
    return log.log_file.read_text()


def test_nothing_that_a_request_holds_is_in_the_log(world: World, log: ServiceProcess) -> None:
    dataset, mark, last = world.dataset(), f"mark{uuid.uuid4().hex}", str(uuid.uuid4())
    user = world.user(grants={dataset: Level.WRITE})
    judge = Judge(world, world.client(user))
    codes = set()
    for rpc, fields in marked(mark):
        defaults = {"dataset_id": dataset} if rpc == "CreateJob" else {}
        codes.add(judge.send(rpc, message(rpc, **(defaults | fields))).code)
    assert codes == {"OK", "INVALID_ARGUMENT", "PERMISSION_DENIED", "NOT_FOUND"}
    judge.send("ListJobs", b"", metadata=(*judge.client.metadata, ("x-correlation-id", last)))
    shown = text_of(log, last)
    assert mark not in shown
    assert "forged" not in shown
    for line in shown.splitlines():
        assert json.loads(line)["message"]


def test_nothing_that_a_header_holds_is_in_the_log(world: World, log: ServiceProcess) -> None:
    judge, mark, last = Judge(world, world.client(world.user())), uuid.uuid4().hex, str(uuid.uuid4())
    good = judge.client.metadata
    token = str(dict(good)["authorization"]).partition(" ")[2]
    for headers in (
        (("authorization", f"Bearer {token}{mark}"),),
        (("authorization", f"Basic {mark}"),),
        (("authorization", mark * 100),),
        (*good, ("authorization", f"Bearer {mark}")),
        (*good, ("x-on-behalf-of", mark)),
        (*good, ("x-on-behalf-of", f'{mark}","level":"ERROR')),
        (*good, ("x-correlation-id", f"{mark} with spaces")),
        (*good, ("x-correlation-id", f'{mark}","forged":"')),
        (*good, ("x-correlation-id-bin", mark.encode() + b"\n\xff")),
        (*good, (f"x-{mark}", mark), ("user-agent", mark), ("traceparent", mark)),
    ):
        for rpc in METHODS:
            judge.send(rpc, message(rpc), metadata=headers)
    judge.send("ListJobs", b"", metadata=(*good, ("x-correlation-id", last)))
    shown = text_of(log, last)
    assert mark not in shown
    assert token not in shown
    assert token.rpartition(".")[2] not in shown


def test_an_access_line_names_the_caller_and_nobody_else(world: World, log: ServiceProcess) -> None:
    dataset, last = world.dataset(), str(uuid.uuid4())
    victim, other = world.user(grants={dataset: Level.WRITE}), world.user()
    program = world.user(Role.SERVICE)
    job = world.client(victim).create(dataset_id=dataset, external_id="theirs").job
    client = world.client(program, on_behalf_of=other)
    client.metadata += (("x-correlation-id", last),)
    judge = Judge(world, client)
    for rpc, fields in (
        ("GetJob", {"job_id": job.job_id}),
        ("CancelJob", {"job_id": job.job_id}),
        ("ListJobs", {"filter": {"user_soeid": victim.soeid}}),
    ):
        judge.send(rpc, message(rpc, **fields))
    wait_until(
        lambda: len([1 for each in log.lines("call") if each["correlation_id"] == last]) == 3, 10, "lines"
    )
    for line in log.lines("call"):
        if line["correlation_id"] == last:
            assert (line["caller"], line["on_behalf_of"]) == (program.soeid, other.soeid)
            assert victim.soeid not in str(line)
            assert job.job_id not in str(line)
            assert set(line) == {
                *("time", "level", "logger", "message", "method", "caller", "on_behalf_of", "code", "reason"),
                *("duration_ms", "correlation_id", "peer"),
            }  # fmt: skip


def test_a_path_that_nobody_serves_writes_no_line(world: World, log: ServiceProcess) -> None:
    judge, mark, last = Judge(world, world.client(world.user())), uuid.uuid4().hex, str(uuid.uuid4())
    for path in (f"/jobs.v1.JobsService/{mark}", f"/{mark}", f'/"{mark}', f"/grpc.health.v1.Health/{mark}"):
        assert judge.send(path, jobs_pb2.GetJobRequest()).code == "UNIMPLEMENTED"
    judge.send("ListJobs", b"", metadata=(*judge.client.metadata, ("x-correlation-id", last)))
    assert mark not in text_of(log, last)
