"""Every field of every request of AccessService, what it takes and refuses; and bytes that are no request."""

import random
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor

from jobs.v1 import access_pb2
from jobs_service.model.caller import Role
from tests.support.access_requests import RPCS, access_tables, good, path, request
from tests.support.judge import Answer, Judge, tagged, varint
from tests.support.world import World

INT32, INT64 = (-(2**31), 2**31 - 1), (-(2**63), 2**63 - 1)
SOEIDS = ("us1000", "us100000", "u100000", "1000000", "us1000\u0660", "\u212aa10000", "us10000\n",
          "us10000\0", " us10000", "' OR 1=1", "x" * 2**20)  # fmt: skip
BAD: dict[str, tuple[Any, ...]] = {
    "user_soeid": ("", *SOEIDS),
    "dataset_id": (0, -1, INT64[0]),
    "role": (0, 4, 99, *INT32),
    "level": (0, 4, 99, *INT32),
    "run_type": (0, 5, 99, *INT32),
    "name": ("", "a\0b", "x" * 501, "\u20ac" * 167, "x" * 2**20),
    "max_running": (-1, INT32[0]),
    "page_size": (-1, INT32[0]),
    "page_token": ("x", "!!!!", "AQ" * 10, "AQ" * 1000, "\u00e9" * 44, "\0" * 34, "====", "A" * 2**20),
}
GOOD: dict[str, tuple[Any, ...]] = {
    "user_soeid": (str.upper,),
    "dataset_id": (INT64[1],),
    "role": (1, 2, 3),
    "level": (1, 2, 3),
    "run_type": (1, 2, 3, 4),
    "name": ("x" * 500, "\u20ac" * 166 + "xx", "'; DROP TABLE datasets --"),
    "max_running": (0, 1, INT32[1]),
    "page_size": (0, 1, 1000, 1001, INT32[1]),
    "page_token": ("",),
}
FIELDS = [(rpc, field) for rpc, method in RPCS.items() for field in method.input_type.fields]
_IDS = [f"{rpc}.{field.name}" for rpc, field in FIELDS]
LISTS = {"ListPermissions"}
JUDGED = {"INVALID_ARGUMENT", "PERMISSION_DENIED"}


@pytest.fixture(scope="module")
def world(module_world: World) -> World:
    return module_world


@pytest.fixture(scope="module")
def judge(world: World) -> Judge:
    """Calls as an admin."""
    return Judge(world, world.client(world.user(Role.ADMIN)))


@pytest.fixture(scope="module")
def stranger(world: World) -> Judge:
    """Calls as somebody who may nothing: whatever it sends, nothing may be written."""
    return Judge(world, world.client(world.user()))


def fields_of(judge: Judge, rpc: str) -> dict[str, Any]:
    """A request that would be accepted, about a user and a data set of its own."""
    return good(rpc, judge.world.user().soeid, judge.world.dataset())


def refused_without_a_trace(judge: Judge, rpc: str, data: bytes) -> Answer:
    before = access_tables(judge.world)
    answer = judge.send(path(rpc), data)
    assert answer.code != "OK"
    assert access_tables(judge.world) == before
    return answer


def test_every_field_has_values_that_are_taken_and_values_that_are_not() -> None:
    names = {field.name for _, field in FIELDS}
    assert names == set(BAD) == set(GOOD)


@pytest.mark.parametrize(("rpc", "field"), FIELDS, ids=_IDS)
def test_a_bad_value_is_named_and_changes_nothing(judge: Judge, rpc: str, field: FieldDescriptor) -> None:
    fields = fields_of(judge, rpc)
    for value in BAD[field.name]:
        data = request(rpc, **(fields | {field.name: value})).SerializeToString()
        answer = refused_without_a_trace(judge, rpc, data)
        reason = "INVALID_PAGE_TOKEN" if field.name == "page_token" else "INVALID_FIELD"
        assert (answer.code, answer.refusal.reason) == ("INVALID_ARGUMENT", reason), repr(value)[:80]
        assert answer.fields == [field.name]
        limit = {"limit": "500"} if field.name == "name" and len(value.encode()) > 500 else {}
        assert answer.refusal.metadata == {"field": field.name, **limit}


@pytest.mark.parametrize(("rpc", "field"), FIELDS, ids=_IDS)
def test_a_good_value_is_taken(judge: Judge, rpc: str, field: FieldDescriptor) -> None:
    for value in GOOD[field.name]:
        fields = fields_of(judge, rpc)
        given = value(fields[field.name]) if callable(value) else value
        answer = judge.send(path(rpc), request(rpc, **(fields | {field.name: given})))
        unknown = field.name == "dataset_id" and rpc in {
            "GrantPermission",
            "SetDatasetLimit",
            "ListPermissions",
        }
        assert answer.code == ("NOT_FOUND" if unknown else "OK"), answer


@pytest.mark.parametrize("rpc", RPCS)
def test_an_empty_request_names_all_that_is_missing(judge: Judge, rpc: str) -> None:
    if rpc in LISTS:
        assert judge.send(path(rpc), b"").code == "OK"
        return
    optional = {"max_running"}
    missing = [field.name for field in RPCS[rpc].input_type.fields if field.name not in optional]
    answer = refused_without_a_trace(judge, rpc, b"")
    assert (answer.refusal.reason, answer.fields) == ("INVALID_FIELD", missing)


@pytest.mark.parametrize("rpc", RPCS)
def test_what_is_wrong_is_said_before_who_may(stranger: Judge, rpc: str) -> None:
    wrong = request(rpc, page_size=-1) if rpc in LISTS else request(rpc)
    assert stranger.send(path(rpc), wrong).refusal.reason == "INVALID_FIELD"
    fields = fields_of(stranger, rpc)
    assert stranger.send(path(rpc), request(rpc, **fields)).refusal.reason == "ROLE_REQUIRED"


@pytest.mark.parametrize(("rpc", "field"), FIELDS, ids=_IDS)
def test_a_field_of_another_wire_type_counts_as_not_sent(
    judge: Judge, rpc: str, field: FieldDescriptor
) -> None:
    content = {0: varint(1), 1: bytes(8), 2: b"abc", 5: bytes(4)}
    right = 2 if field.cpp_type == field.CPPTYPE_STRING else 0
    for wire_type in {0, 1, 2, 5} - {right}:
        fields = fields_of(judge, rpc)
        del fields[field.name]
        data = request(rpc, **fields).SerializeToString()
        answer = judge.send(path(rpc), data + tagged(field.number, wire_type, content[wire_type]))
        if rpc in LISTS or field.name == "max_running":
            assert answer.code == "OK", answer
        else:
            assert answer.fields == [field.name]


@pytest.mark.parametrize("rpc", RPCS)
def test_a_text_that_is_no_utf8_makes_the_message_undecodable(stranger: Judge, rpc: str) -> None:
    for field in RPCS[rpc].input_type.fields:
        if field.cpp_type != field.CPPTYPE_STRING:
            continue
        for text in (b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xc0\x80"):
            answer = refused_without_a_trace(stranger, rpc, tagged(field.number, 2, text))
            assert (answer.refusal.reason, answer.fields) == ("INVALID_FIELD", ["request"])


@pytest.mark.parametrize("rpc", RPCS)
def test_bytes_that_are_nearly_a_request_never_break_anything(stranger: Judge, rpc: str) -> None:
    dice = random.Random(f"access {rpc}")
    whole = request(rpc, **fields_of(stranger, rpc)).SerializeToString()
    tried = [whole[:length] for length in range(len(whole))]
    tried += [dice.randbytes(size) for size in (1, 2, 3, 5, 8, 13, 21, 34, 1000, 100_000) * 3]
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(dice.choice([1, 1, 2, 5])):
            damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        tried.append(bytes(damaged))
    before = access_tables(stranger.world)
    for data in tried:
        assert stranger.send(path(rpc), data).code in JUDGED
    assert access_tables(stranger.world) == before


@pytest.mark.parametrize("rpc", RPCS)
def test_fields_that_nobody_knows_are_ignored(judge: Judge, rpc: str) -> None:
    unknown = tagged(999, 2, b"x") + tagged(2**29 - 1, 0, varint(2**64 - 1)) + tagged(998, 1, bytes(8))
    data = request(rpc, **fields_of(judge, rpc)).SerializeToString()
    assert judge.send(path(rpc), data + unknown).code == "OK"


def test_a_damaged_page_token_is_refused_wherever_the_damage_is(judge: Judge) -> None:
    dataset = judge.world.dataset()
    for _ in range(2):
        user = judge.world.user()
        judge.client.access("GrantPermission", user_soeid=user.soeid, dataset_id=dataset, level=1)
    token = judge.client.access("ListPermissions", dataset_id=dataset, page_size=1).next_page_token
    damaged = [token[:place] + "-" + token[place + 1 :] for place in range(len(token))]
    damaged += [token[:place] for place in range(1, len(token))]
    for other in {*damaged, token + "A", token * 2, f" {token}", token + "\n"} - {token}:
        asked = access_pb2.ListPermissionsRequest(dataset_id=dataset, page_token=other)
        assert judge.send(path("ListPermissions"), asked).refusal.reason == "INVALID_PAGE_TOKEN", other
