"""Every field of every request: what it takes, what it refuses, and how the refusal names it."""

import uuid
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor

from jobs.v1 import jobs_pb2
from jobs_service.model.caller import Level
from tests.support.judge import METHODS, Judge, message, tagged, varint
from tests.support.request_cases import CASES, UUID, Case, request_fields
from tests.support.world import World

# How many jobs and events an accepted call adds.
WRITES = {
    "CreateJob": (1, 1),
    "CancelJob": (0, 1),
    "RetryJob": (0, 1),
    "BatchCreateJobs": (1, 1),
    "BatchCancelJobs.reason": (0, 1),
}
# What a call with nothing but these fields lacks.
REQUIRED = {
    "CreateJob": ["dataset_id", "run_type", "run_parameters"],
    "ListJobs": [],
    "GetJob": ["job_id"],
    "GetJobStatus": ["job_id"],
    "CancelJob": ["job_id"],
    "RetryJob": ["job_id"],
    "BatchCreateJobs": ["requests"],
    "BatchGetJobs": ["job_ids"],
    "BatchCancelJobs": ["job_ids"],
}
# Varints, with a length, fixed: what a field of each type is written with.
_NUMBERS = {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_ENUM}
_VARINT = _NUMBERS | {FieldDescriptor.CPPTYPE_BOOL}


@pytest.fixture(scope="module")
def world(module_world: World) -> World:
    return module_world


@pytest.fixture(scope="module")
def dataset(world: World) -> int:
    return world.dataset()


@pytest.fixture(scope="module")
def judge(world: World, dataset: int) -> Judge:
    """Calls as somebody who may write the data set."""
    return Judge(world, world.client(world.user(grants={dataset: Level.WRITE})))


def good_request(judge: Judge, rpc: str, dataset: int) -> dict[str, Any]:
    """The required fields of a request that would be accepted."""
    if rpc == "ListJobs":
        return {}
    if rpc == "CreateJob":
        return {"dataset_id": dataset, "run_type": 1, "run_parameters": {"file_path": "a.csv"}}
    if rpc == "BatchCreateJobs":
        return {"requests": [good_request(judge, "CreateJob", dataset)]}
    job_id = judge.client.create(dataset_id=dataset).job.job_id
    if rpc == "RetryJob":
        judge.client.cancel(job_id)
    return {"job_ids": [job_id]} if rpc.startswith("Batch") else {"job_id": job_id}


def with_case(good: dict[str, Any], case: Case) -> dict[str, Any]:
    """The request with the values of the case, each entry of a batch with its own."""
    if case.rpc == "BatchCreateJobs" and 1 <= len(case.fields.get("requests", [])) <= 2:
        return {"requests": [good["requests"][0] | entry for entry in case.fields["requests"]]}
    if "filter" in case.fields and case.rpc == "BatchCancelJobs":
        return case.fields
    return good | case.fields


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_value_of_a_field_is_taken_or_refused(judge: Judge, dataset: int, case: Case) -> None:
    fields = with_case(good_request(judge, case.rpc, dataset), case)
    before = judge.world.counts()
    answer = judge.send(case.rpc, message(case.rpc, **fields).SerializeToString() + case.wire)
    if case.code == "OK":
        assert answer.code == "OK", answer
        # Cancels any number; may be a replay of CreateJob's case; makes two.
        uncounted = (
            "BatchCancelJobs.filter",
            "BatchCreateJobs.requests.request_id",
            "BatchCreateJobs.requests.dep",
        )
        if "validate_only" not in case.path and not case.wire and not case.path.startswith(uncounted):
            jobs, events = WRITES.get(case.path, WRITES.get(case.rpc, (0, 0)))
            assert judge.world.counts() == (before[0] + jobs, before[1] + events)
        return
    assert (answer.code, answer.refusal.reason) == (case.code, case.reason), answer
    if case.wrong is not None:
        assert answer.fields == [case.wrong]
        expected = {"field": case.wrong} | ({"limit": str(case.limit)} if case.limit else {})
        if case.wrong.startswith("requests["):
            expected["index"] = case.wrong[len("requests[")]
        assert answer.refusal.metadata == expected


def test_every_field_of_every_request_has_a_case() -> None:
    fields = {path for path, _, _ in request_fields()}
    tried = {case.path for case in CASES}
    assert fields - tried == set(), "these fields have no case in request_cases"
    assert tried - fields == set(), "these cases are about no field"


def test_every_field_that_can_be_wrong_has_a_value_that_is_taken_and_one_that_is_not() -> None:
    # A bool takes every number.
    fields = {path for path, each, _ in request_fields() if each.cpp_type != each.CPPTYPE_BOOL}
    assert fields - {case.path for case in CASES if case.code in {"OK", "NOT_FOUND"}} <= {
        # Their good values are in every other case: the data set and the type of a job that is made.
        "CreateJob.dataset_id",
        "CreateJob.run_type",
        "BatchCreateJobs.requests.dataset_id",
        "BatchCreateJobs.requests.run_type",
        # A token of the service itself: see below.
        "ListJobs.page_token",
    }
    assert fields - {case.path for case in CASES if case.wrong} == set()


def _wire_types(each: FieldDescriptor) -> list[int]:
    """The wire types that are wrong for a field; start and end of a group are so for all."""
    allowed = {0} if each.cpp_type in _VARINT else {2}
    if each.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        allowed = {1}
    if each.is_repeated:
        allowed.add(2)
    return sorted({0, 1, 2, 5} - allowed)


@pytest.mark.parametrize(
    ("path", "each", "around"), [pytest.param(*found, id=found[0]) for found in request_fields()]
)
def test_a_field_with_a_wrong_wire_type_counts_as_not_sent(
    judge: Judge, dataset: int, path: str, each: FieldDescriptor, around: list[FieldDescriptor]
) -> None:
    rpc, _, name = path.partition(".")
    content = {0: varint(1), 1: bytes(8), 2: b"abc", 5: bytes(4)}
    for wire_type in _wire_types(each):
        fields = good_request(judge, rpc, dataset)
        wire = tagged(each.number, wire_type, content[wire_type])
        entry = b""
        if rpc == "BatchCreateJobs" and around:
            # An entry of its own, in which all else is good.
            good = fields.pop("requests")[0]
            good.pop(name.removeprefix("requests."), None)
            entry = message("CreateJob", **good).SerializeToString()
        if rpc == "BatchCancelJobs" and around:
            # A filter that chooses by something else.
            fields = {
                "filter": {"external_id": "of no job"} if each.name != "external_id" else {"user_id": 1}
            }
        fields.pop(name, None)
        for outer in reversed(around):
            wire = tagged(outer.number, 2, (entry if outer.name == "requests" else b"") + wire)
        answer = judge.send(rpc, message(rpc, **fields).SerializeToString() + wire)
        missing = name.replace("requests.", "") if around else name
        if missing in REQUIRED[rpc if rpc != "BatchCreateJobs" or not around else "CreateJob"]:
            assert answer.fields == [name.replace("requests.", "requests[0].")]
        else:
            assert answer.code == "OK", answer


@pytest.mark.parametrize("wire_type", [3, 4, 6, 7])
@pytest.mark.parametrize("rpc", METHODS)
def test_a_wire_type_that_ends_nowhere_is_no_message(judge: Judge, rpc: str, wire_type: int) -> None:
    answer = judge.send(rpc, tagged(1, wire_type, b""))
    assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", ["request"])


@pytest.mark.parametrize("rpc", METHODS)
def test_an_empty_request_names_all_that_is_missing(judge: Judge, rpc: str) -> None:
    answer = judge.send(rpc, b"")
    if REQUIRED[rpc]:
        assert (answer.refusal.reason, answer.fields) == ("INVALID_FIELD", REQUIRED[rpc])
    else:
        assert answer.code == "OK"


@pytest.mark.parametrize(
    ("rpc", "fields", "wrong"),
    [
        (
            "CreateJob",
            {
                "dataset_id": -1,
                "run_type": 99,
                "source_commit_id": "x",
                "run_parameters": {"a\0": "\0", "n": float("nan"), "dataset_id": True, "target": 5},
                "description": "x" * 1001,
                "external_id": "\0",
                "priority": 101,
                "request_id": "x",
            },
            [
                "dataset_id",
                "run_type",
                "source_commit_id",
                "description",
                "external_id",
                "priority",
                "request_id",
                'run_parameters["a\\u0000"]',
                "run_parameters.n",
                "run_parameters.target",
                "run_parameters.dataset_id",
            ],
        ),
        (
            "ListJobs",
            {
                "filter": {
                    "user_soeid": "x",
                    "dataset_id": 0,
                    "statuses": [0, 1, 99],
                    "run_types": [99],
                    "external_id": "x" * 129,
                    "create_time_from": {"nanos": -1},
                    "create_time_to": {"seconds": 2**60},
                },
                "page_size": -1,
                "skip": -1,
                "view": 99,
            },
            [
                "filter.user_soeid",
                "filter.dataset_id",
                "filter.statuses[0]",
                "filter.statuses[2]",
                "filter.run_types[0]",
                "filter.external_id",
                "filter.create_time_from",
                "filter.create_time_to",
                "page_size",
                "skip",
                "view",
            ],
        ),
        ("GetJob", {"job_id": "x", "view": 99}, ["job_id", "view"]),
        ("CancelJob", {"job_id": "x", "reason": "x" * 501}, ["job_id", "reason"]),
        ("BatchGetJobs", {"job_ids": [UUID, "x", ""], "view": 99}, ["job_ids[1]", "job_ids[2]", "view"]),
        (
            "BatchCancelJobs",
            {"filter": {"user_id": 0, "dataset_id": 0}, "reason": "x" * 501},
            ["filter.user_id", "filter.dataset_id", "reason"],
        ),
        (
            "BatchCreateJobs",
            {"requests": [{"dataset_id": -1, "run_type": 99, "priority": -1}, {"dataset_id": -2}]},
            [
                *(f"requests[0].{name}" for name in ("dataset_id", "run_type", "run_parameters", "priority")),
                *(f"requests[1].{name}" for name in ("dataset_id", "run_type", "run_parameters")),
            ],
        ),
    ],
    ids=[
        "CreateJob",
        "ListJobs",
        "GetJob",
        "CancelJob",
        "BatchGetJobs",
        "BatchCancelJobs",
        "BatchCreateJobs",
    ],
)
def test_faults_of_one_request_are_reported_together(
    judge: Judge, rpc: str, fields: dict[str, Any], wrong: list[str]
) -> None:
    answer = judge.send(rpc, message(rpc, **fields))
    assert answer.refusal.reason == "INVALID_FIELD"
    assert sorted(answer.fields) == sorted(wrong)


def test_a_text_at_its_limit_comes_back_whole(judge: Judge, dataset: int) -> None:
    texts = {"description": "\U0001f600" * 250, "external_id": "\u20ac" * 42 + "\u00e9"}
    job = judge.client.create(dataset_id=dataset, **texts).job
    assert {name: getattr(judge.client.get(job.job_id), name) for name in texts} == texts
    cancelled = judge.client.cancel(job.job_id, "\U0001f600" * 125)
    assert cancelled.cancel_reason == "\U0001f600" * 125


def test_ids_are_taken_in_any_case_and_given_back_in_lower_case(judge: Judge, dataset: int) -> None:
    job = judge.client.create(dataset_id=dataset, source_commit_id="AB" * 32).job
    assert job.source_commit_id == "ab" * 32
    assert judge.client.get(job.job_id.upper()) == job
    assert judge.client.status(job.job_id.upper()).job_id == job.job_id


def test_refused_ids_stand_in_the_metadata_in_lower_case(judge: Judge) -> None:
    answer = judge.send("GetJob", jobs_pb2.GetJobRequest(job_id=UUID.upper()))
    assert answer.refusal.metadata == {"job_id": UUID}
    answer = judge.send("ListJobs", message("ListJobs", filter={"user_soeid": "ZZ00000"}))
    assert answer.refusal.metadata == {"user_soeid": "zz00000"}


def test_the_last_of_two_owners_in_a_filter_counts(judge: Judge) -> None:
    nobody, nobody_else = tagged(1, 0, varint(2**62)), tagged(2, 2, b"zz00000")
    answer = judge.send("ListJobs", tagged(1, 2, nobody + nobody_else))
    assert answer.refusal.metadata == {"user_soeid": "zz00000"}


def test_fields_that_nobody_knows_are_ignored(judge: Judge, dataset: int) -> None:
    unknown = tagged(999, 2, b"x") + tagged(2**29 - 1, 0, varint(2**64 - 1)) + tagged(998, 1, bytes(8))
    for rpc in METHODS:
        request = message(rpc, **good_request(judge, rpc, dataset)).SerializeToString()
        assert judge.send(rpc, request + unknown).code == "OK"


@pytest.mark.parametrize(
    "changed",
    [
        {"view": jobs_pb2.JOB_VIEW_FULL},
        {"filter": {}},
        {"filter": {"dataset_id": 1, "run_types": [1]}},
        {"filter": {"dataset_id": 1, "statuses": [2]}},
        {"filter": {"dataset_id": 2, "statuses": [1]}},
    ],
    ids=str,
)
def test_a_page_token_is_bound_to_filter_and_view(
    judge: Judge, dataset: int, changed: dict[str, Any]
) -> None:
    for _ in range(2):
        judge.client.create(dataset_id=dataset)
    asked = {"filter": {"dataset_id": dataset, "statuses": [1]}, "page_size": 1}
    token = judge.client.list(**asked).next_page_token
    assert judge.client.list(**asked, page_token=token, skip=1, include_total_size=True)
    answer = judge.send("ListJobs", message("ListJobs", **(asked | {"page_token": token} | changed)))
    assert (answer.refusal.reason, answer.fields) == ("INVALID_PAGE_TOKEN", ["page_token"])


def test_a_damaged_page_token_is_refused_wherever_the_damage_is(judge: Judge, dataset: int) -> None:
    for _ in range(2):
        judge.client.create(dataset_id=dataset)
    token = judge.client.list(page_size=1).next_page_token
    damaged = [token[:place] + "-" + token[place + 1 :] for place in range(len(token))]
    damaged += [token[:place] for place in range(1, len(token))]
    for other in {*damaged, token + "A", token * 2, f" {token}", token + "\n"} - {token}:
        answer = judge.send("ListJobs", jobs_pb2.ListJobsRequest(page_token=other))
        assert answer.refusal.reason == "INVALID_PAGE_TOKEN", other


def test_a_refused_request_id_is_still_free(judge: Judge, dataset: int) -> None:
    request_id = str(uuid.uuid4())
    bad = message("CreateJob", dataset_id=dataset, request_id=request_id)
    assert judge.send("CreateJob", bad).refusal.reason == "INVALID_FIELD"
    assert not judge.client.create(dataset_id=dataset, request_id=request_id).replayed
