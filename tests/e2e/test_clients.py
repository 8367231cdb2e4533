"""The five RPCs from three makes of client, against the running command with its demo users."""

import json
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.clients import (
    PROTOS,
    AnyClient,
    BufCurl,
    CallRefused,
    Json,
    NodeClient,
    PythonStubs,
    Refusal,
    node_modules,
)
from tests.e2e.demo import ADMIN, ALICE, BOB, EVE, PROGRAM, Demo
from tests.support.judge import EVERY_METHOD, path_of

PAYLOADS = Path(__file__).parents[1] / "payloads"
NOBODYS_JOB = "01900000-0000-7000-8000-000000000000"


class Caller:
    """One caller with one make of client."""

    def __init__(self, client: AnyClient, token: str | None) -> None:
        self._client = client
        self._headers = {"authorization": f"Bearer {token}"} if token else {}

    def __call__(self, rpc: str, request: Json, **headers: str) -> Json:
        """Call an RPC; headers in Python's spelling, such as x_on_behalf_of."""
        more = {name.replace("_", "-"): text for name, text in headers.items()}
        return self._client.call(rpc, request, self._headers | more)

    def create(self, payload: str, /, **fields: object) -> Json:
        """Create a job with a payload of the platform, on data set 1 unless the fields say otherwise."""
        job: Json = self("CreateJob", request_for(payload) | fields)["job"]
        return job

    def get(self, job: Json) -> Json:
        """The job as it is now."""
        found: Json = self("GetJob", {"jobId": job["jobId"]})["job"]
        return found

    def ids(self, wanted: Json) -> list[str]:
        """The ids that a filter finds."""
        return [job["jobId"] for job in self("ListJobs", {"filter": wanted}).get("jobs", [])]

    def refused(self, rpc: str, request: Json, **headers: str) -> Refusal:
        """What a call that must be refused answers."""
        with pytest.raises(CallRefused) as caught:
            self(rpc, request, **headers)
        refusal = caught.value.refusal
        assert refusal.domain == "jobs.v1"
        assert refusal.message
        return refusal


def request_for(payload: str) -> Json:
    shape = json.loads((PAYLOADS / f"{payload}.json").read_text())
    return {
        "datasetId": "1",
        "runType": f"RUN_TYPE_{shape['run_type']}",
        "runParameters": shape["run_parameters"],
    }


@pytest.fixture(scope="module", params=["buf", "node", "python"])
def client(request: pytest.FixtureRequest, demo: Demo) -> Iterator[AnyClient]:
    """Each make of client."""
    makes: dict[str, Callable[[], AnyClient]] = {
        "buf": lambda: BufCurl(demo.target),
        "node": lambda: NodeClient(demo.target, node_modules()),
        "python": lambda: PythonStubs(demo.target),
    }
    made = makes[request.param]()
    yield made
    made.close()


@pytest.fixture
def alice(client: AnyClient, demo: Demo) -> Caller:
    """The user with write on data set 1."""
    return Caller(client, demo.token(ALICE))


@pytest.fixture
def tag() -> str:
    """An external_id that only this test's jobs have."""
    return f"test-{uuid.uuid4()}"


@pytest.mark.parametrize("payload", ["import_path", "import_upload", "sampling_rounds", "exploration"])
def test_a_payload_of_the_platform_makes_a_job_and_comes_back_as_it_went_in(
    alice: Caller, payload: str
) -> None:
    wanted = request_for(payload) | {"description": "from a client", "priority": 7}
    job = alice("CreateJob", wanted)["job"]
    assert {key: job[key] for key in wanted} == wanted
    assert (job["status"], job["userSoeid"], job["version"]) == ("JOB_STATUS_PENDING", ALICE, "1")
    assert alice.get(job) == job


def test_a_transformation_needs_read_on_each_source(alice: Caller, demo: Demo) -> None:
    wanted = request_for("sql_transform")
    refusal = alice.refused("CreateJob", wanted)
    assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "DATASET_PERMISSION_DENIED")
    assert refusal.metadata == {"dataset_id": "2", "required_permission": "read"}
    demo.done("grant", ALICE, "2", "read")
    try:
        job = alice("CreateJob", wanted)["job"]
    finally:
        demo.done("revoke", ALICE, "2")
    assert alice.get(job)["runParameters"] == wanted["runParameters"]
    assert alice.refused("CreateJob", wanted) == refusal


def test_each_filter_finds_the_jobs_that_it_names(client: AnyClient, demo: Demo, tag: str) -> None:
    alice, bob, eve, admin = (Caller(client, demo.token(soeid)) for soeid in (ALICE, BOB, EVE, ADMIN))
    imported = alice.create("import_path", externalId=tag)
    cancelled = alice.create("exploration", externalId=tag)
    alice("CancelJob", {"jobId": cancelled["jobId"]})
    bobs = bob.create("exploration", externalId=tag)
    elsewhere = admin.create("import_path", externalId=tag, datasetId="2")
    jobs = [elsewhere, bobs, cancelled, imported]
    expected: list[tuple[Json, list[Json]]] = [
        ({}, jobs),
        ({"userId": "4"}, [bobs]),
        ({"userSoeid": "BO00001"}, [bobs]),
        ({"datasetId": "2"}, [elsewhere]),
        ({"statuses": ["JOB_STATUS_CANCELLED", "JOB_STATUS_FAILED"]}, [cancelled]),
        ({"runTypes": ["RUN_TYPE_IMPORT"]}, [elsewhere, imported]),
        ({"createTimeFrom": bobs["createTime"]}, [elsewhere, bobs]),
        ({"createTimeTo": bobs["createTime"]}, [cancelled, imported]),
        ({"datasetId": "1", "statuses": ["JOB_STATUS_PENDING"], "userSoeid": ALICE}, [imported]),
        ({"datasetId": "999"}, []),
    ]
    found = [admin.ids({"externalId": tag} | wanted) for wanted, _ in expected]
    assert found == [[job["jobId"] for job in jobs] for _, jobs in expected]
    assert alice.ids({"externalId": tag}) == [job["jobId"] for job in jobs[1:]]
    assert eve.ids({"externalId": tag}) == []


def test_pages_lead_to_the_end_and_hold_every_job_once(alice: Caller, tag: str) -> None:
    newest_first = [alice.create("import_path", externalId=tag)["jobId"] for _ in range(5)][::-1]
    wanted: Json = {"filter": {"externalId": tag}, "pageSize": 2, "includeTotalSize": True}
    pages = [alice("ListJobs", wanted)]
    while token := pages[-1].get("nextPageToken"):
        pages.append(alice("ListJobs", wanted | {"pageToken": token}))
    found = [[job["jobId"] for job in page["jobs"]] for page in pages]
    assert found == [newest_first[:2], newest_first[2:4], newest_first[4:]]
    assert [page["totalSize"] for page in pages] == ["5"] * 3
    assert all("runParameters" not in job for page in pages for job in page["jobs"])
    skipped = alice("ListJobs", wanted | {"skip": 3, "view": "JOB_VIEW_FULL"})["jobs"]
    assert [job["jobId"] for job in skipped] == newest_first[3:]
    assert all(job["runParameters"] for job in skipped)


def test_a_page_token_belongs_to_its_filter(alice: Caller, tag: str) -> None:
    for _ in range(2):
        alice.create("import_path", externalId=tag)
    first = alice("ListJobs", {"filter": {"externalId": tag}, "pageSize": 1})
    other = {"filter": {"externalId": tag, "datasetId": "1"}, "pageToken": first["nextPageToken"]}
    refusal = alice.refused("ListJobs", other)
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN")
    assert (refusal.metadata, list(refusal.violations)) == ({"field": "page_token"}, ["page_token"])


def test_status_follows_a_job_to_its_cancellation(alice: Caller) -> None:
    job = alice.create("sampling_rounds")
    wanted = {"jobId": job["jobId"]}
    same = {key: job[key] for key in ("jobId", "runType", "datasetId", "createTime")}
    assert alice("GetJobStatus", wanted) == same | {"status": "JOB_STATUS_PENDING", "version": "1"}
    cancelled = alice("CancelJob", wanted | {"reason": "not needed"})["job"]
    assert (cancelled["cancelledBySoeid"], cancelled["cancelReason"]) == (ALICE, "not needed")
    ended = {"status": "JOB_STATUS_CANCELLED", "version": "2", "done": True, "endTime": cancelled["endTime"]}
    assert alice("GetJobStatus", wanted) == same | ended
    assert alice.get(job) == cancelled


def test_a_second_cancel_tells_who_was_first(alice: Caller) -> None:
    job = alice.create("import_upload")
    alice("CancelJob", {"jobId": job["jobId"]})
    refusal = alice.refused("CancelJob", {"jobId": job["jobId"]})
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "JOB_NOT_CANCELLABLE")
    assert refusal.metadata == {"job_id": job["jobId"], "status": "CANCELLED", "cancelled_by": ALICE}
    assert refusal.violations == {}


def test_a_bad_request_names_every_wrong_field_at_once(alice: Caller) -> None:
    wanted = request_for("sampling_rounds") | {"priority": 101, "sourceCommitId": "short"}
    wanted["runParameters"]["rounds"][1]["sample_size"] = 0
    refusal = alice.refused("CreateJob", wanted)
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert {"priority", "source_commit_id", "run_parameters.rounds[1].sample_size"} <= set(refusal.violations)
    assert refusal.metadata["field"] in refusal.violations
    assert all(refusal.violations.values())


def test_what_is_not_there_and_who_is_not_known_are_refused_by_reason(
    alice: Caller, client: AnyClient
) -> None:
    refusal = alice.refused("GetJob", {"jobId": NOBODYS_JOB})
    assert (refusal.code, refusal.reason) == ("NOT_FOUND", "JOB_NOT_FOUND")
    assert refusal.metadata == {"job_id": NOBODYS_JOB}
    refusal = Caller(client, None).refused("ListJobs", {})
    assert (refusal.code, refusal.reason) == ("UNAUTHENTICATED", "CREDENTIALS_MISSING")


def test_a_program_makes_a_job_for_a_user(client: AnyClient, demo: Demo) -> None:
    program, bob = Caller(client, demo.token(PROGRAM)), Caller(client, demo.token(BOB))
    job = program("CreateJob", request_for("exploration"), x_on_behalf_of=BOB)["job"]
    assert (job["userSoeid"], job["creatorSoeid"]) == (BOB, PROGRAM)
    assert bob.get(job) == job
    refusal = bob.refused("GetJob", {"jobId": job["jobId"]}, x_on_behalf_of=ALICE)
    assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "ROLE_REQUIRED")


def test_each_make_of_client_sees_the_same_job(alice: Caller, demo: Demo) -> None:
    stubs = PythonStubs(demo.target)
    job = alice.create("sampling_rounds", description="größer", requestId=str(uuid.uuid4()))
    assert Caller(stubs, demo.token(ALICE)).get(job) == job
    stubs.close()


@pytest.mark.parametrize("reflection", ["grpc-v1", "grpc-v1alpha"])
def test_buf_curl_learns_the_api_from_either_version_of_reflection(demo: Demo, reflection: str) -> None:
    buf = BufCurl(demo.target, reflection)
    methods = buf.list_methods()
    assert sorted(m for m in methods if "jobs" in m) == sorted(path_of(rpc)[1:] for rpc in EVERY_METHOD)
    alice = Caller(buf, demo.token(ALICE))
    assert alice.get(alice.create("import_path"))["status"] == "JOB_STATUS_PENDING"


def test_parameters_are_usable_in_sql(demo: Demo) -> None:
    stubs = PythonStubs(demo.target)
    job = Caller(stubs, demo.token(ALICE)).create("import_upload")
    stubs.close()
    with demo.sql() as sql:
        row = sql.execute(
            """SELECT (run_parameters->>'dataset_id')::int, (run_parameters->>'file_size')::bigint
                 FROM jobs WHERE job_id = %s""",
            (job["jobId"],),
        ).fetchone()
    assert row == (1, 18274651)


def test_the_protos_import_nothing_that_a_client_would_have_to_find() -> None:
    files = sorted(PROTOS.rglob("*.proto"))
    assert files
    for file in files:
        for imported in re.findall(r'^import\s+"([^"]+)"', file.read_text(), re.MULTILINE):
            allowed = re.fullmatch(r"google/protobuf/(timestamp|duration|struct)\.proto", imported)
            assert allowed or (PROTOS / imported).is_file(), f"{file.name} imports {imported}"
