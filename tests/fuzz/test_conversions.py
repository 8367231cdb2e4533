"""Values in as protobuf, through Python and JSONB, out as protobuf: what is allowed comes back."""

import json
import math
import string
import struct
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from google.protobuf import struct_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from jobs.v1 import jobs_pb2
from jobs_service.core import run_parameters
from jobs_service.model.caller import Caller, normalized_soeid
from jobs_service.model.errors import InvalidPageToken, InvalidRequest
from jobs_service.model.job import JobStatus, JobView, NewJob, RunType
from jobs_service.model.requests import Cursor, JobFilter
from jobs_service.transport import page_tokens, requests, structs
from tests.support.postgres import PostgresServer, connect

# The same examples every time: a short test must not fail on one day in a hundred.
settings.register_profile(
    "fixed",
    deadline=None,
    max_examples=50,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("fixed")
CALLER = Caller("us10000", 7)
EXACT = 2**53

letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.text(letters, max_size=20)
edges = st.sampled_from(
    [0.0, -0.0, 5e-324, -2.2e-308, 1e308, -1e308, 0.1, float(EXACT), float(EXACT + 2), -float(EXACT), 1e16]
)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-EXACT, EXACT).map(float) | edges
# A whole number is kept as an integer, which has no sign of zero.
scalars = st.none() | st.booleans() | numbers.map(lambda number: number + 0.0) | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=25,
)
objects = st.dictionaries(texts, values, max_size=6)


def as_struct(value: dict[str, Any]) -> struct_pb2.Struct:
    """Over the wire, as a client would send it."""
    sent = struct_pb2.Struct()
    structs.to_struct(value, sent)
    return struct_pb2.Struct.FromString(sent.SerializeToString())


def deep(levels: int, leaf: Any = None) -> dict[str, Any]:
    """An object of that many levels, itself the first, of objects and lists in turn."""
    value: Any = {"leaf": leaf}
    for level in range(levels - 2):
        value = [value] if level % 2 else {"k": value}
    return {"k": value}


def request(parameters: dict[str, Any], **fields: Any) -> jobs_pb2.CreateJobRequest:
    made = jobs_pb2.CreateJobRequest(**({"dataset_id": 1, "run_type": 3} | fields))
    made.run_parameters.CopyFrom(as_struct(parameters))
    return made


def checked(made: jobs_pb2.CreateJobRequest) -> NewJob:
    return requests.create_request(CALLER, made).job


@pytest.fixture(scope="module")
def connection(postgres: PostgresServer) -> Iterator[psycopg.Connection]:
    with connect(postgres.new_database()) as opened:
        yield opened


def stored(connection: psycopg.Connection, value: Any) -> Any:
    """The value as JSONB gives it back."""
    row = connection.execute("SELECT (%s::jsonb)::text", (json.dumps(value),)).fetchone()
    assert row is not None
    return json.loads(row[0])


@settings(max_examples=100)
@given(value=objects)
def test_an_object_comes_back_from_the_database_as_it_was_sent(
    connection: psycopg.Connection, value: dict[str, Any]
) -> None:
    sent = as_struct(value)
    read = structs.to_json(sent)
    back = as_struct(stored(connection, read))
    assert back == as_struct(read) == sent


@settings(max_examples=100)
@given(number=numbers)
def test_a_number_keeps_every_bit_and_is_whole_where_it_can_be(
    connection: psycopg.Connection, number: float
) -> None:
    read = structs.to_json(as_struct({"n": number}))["n"]
    back = as_struct(stored(connection, {"n": read})).fields["n"].number_value
    assert (type(read) is int) == (number.is_integer() and abs(number) <= EXACT)
    # The sign of zero is all that JSON's integers cannot hold.
    assert struct.pack(">d", back) == struct.pack(">d", number + 0.0)


@given(value=objects)
def test_what_is_allowed_is_taken_as_it_is(value: dict[str, Any]) -> None:
    assume(
        not {"dataset_id", "user_id", "target", "source_commit_id", "table_key", "output_format"} & set(value)
    )
    assert checked(request(value)).run_parameters == structs.to_json(as_struct(value))


FORBIDDEN = [math.nan, math.inf, -math.inf, "a\0b", {"a\0b": 1}, deep(16)]


@given(value=objects, bad=st.sampled_from(FORBIDDEN), inside=st.booleans())
def test_what_no_json_of_ours_may_hold_is_refused_wherever_it_is(
    value: dict[str, Any], bad: Any, inside: bool
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        checked(request(value | {"bad": [value, {"x": bad}] if inside else bad}))
    assert all(each.field.startswith("run_parameters.bad") for each in refusal.value.violations)


@pytest.mark.parametrize("leaf", [None, 1, "x", [], {}])
def test_sixteen_levels_are_taken_and_seventeen_are_not(leaf: Any) -> None:
    last = isinstance(leaf, list | dict)
    assert checked(request(deep(16 - last, leaf))).run_parameters
    with pytest.raises(InvalidRequest):
        checked(request(deep(17 - last, leaf)))


@pytest.mark.parametrize("room", [0, 1])
def test_the_limit_of_the_size_is_exact(room: int) -> None:
    fits = run_parameters.MAX_BYTES - len('{"k":""}')
    if room == 0:
        assert checked(request({"k": "x" * fits})).payload_bytes == run_parameters.MAX_BYTES
    else:
        with pytest.raises(InvalidRequest):
            checked(request({"k": "x" * (fits + 1)}))


def shuffled(value: Any, data: st.DataObject) -> Any:
    """The same value with every object's keys in another order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key], data) for key in data.draw(st.permutations(list(value)))}
    return [shuffled(each, data) for each in value] if isinstance(value, list) else value


@given(value=objects, data=st.data())
def test_the_order_of_keys_changes_no_request(value: dict[str, Any], data: st.DataObject) -> None:
    value = {"x": value}
    one = checked(request(value, request_id=str(UUID(int=1))))
    other = checked(request(shuffled(value, data), request_id=str(UUID(int=2)), validate_only=True))
    assert one.request_hash == other.request_hash


fields_of_a_job = st.fixed_dictionaries(
    {},
    optional={
        "dataset_id": st.integers(1, 3),
        "description": st.sampled_from(["a", "b", '"', "a\u0301", "\u00e1"]),
        "external_id": st.sampled_from(["a", "b", '","x":"']),
        "priority": st.integers(0, 2),
        "source_commit_id": st.sampled_from(["aB" * 32, "ab" * 32, "cd" * 32]),
    },
)
small: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from(["a", "b"]), st.sampled_from([0.0, 1.0, "1", True, False, None, [], {}])
)


@settings(max_examples=200)
@given(one=st.tuples(fields_of_a_job, small), other=st.tuples(fields_of_a_job, small))
def test_hashes_are_equal_where_requests_are_and_nowhere_else(one: Any, other: Any) -> None:
    first, second = (request(parameters, **fields) for fields, parameters in (one, other))
    hashes = [checked(each).request_hash for each in (first, second)]
    for each in (first, second):
        each.source_commit_id = each.source_commit_id.lower()
    assert (hashes[0] == hashes[1]) == (first == second)


moments = st.datetimes(timezones=st.just(UTC))
cursors = st.builds(Cursor, moments, st.uuids())
filters = st.builds(
    JobFilter,
    owner_id=st.none() | st.integers(1, 2**63 - 1),
    owner_soeid=st.none() | st.from_regex(r"[a-z]{2}[0-9]{5}", fullmatch=True),
    dataset_id=st.none() | st.integers(1, 2**63 - 1),
    statuses=st.frozensets(st.sampled_from(JobStatus)),
    run_types=st.frozensets(st.sampled_from(RunType)),
    external_id=st.none() | texts,
    create_time_from=st.none() | moments,
    create_time_to=st.none() | moments,
)
views = st.sampled_from([JobView.BASIC, JobView.FULL])


@given(cursor=cursors, wanted=filters, view=views)
def test_a_page_token_comes_back_as_the_place_it_was(
    cursor: Cursor, wanted: JobFilter, view: JobView
) -> None:
    assert page_tokens.decode(page_tokens.encode(cursor, wanted, view), wanted, view) == cursor


@given(
    cursor=cursors,
    one=filters,
    other=filters,
    view=views,
    name=st.sampled_from([each.name for each in fields(JobFilter)]),
)
def test_a_page_token_is_bound_to_every_field_of_its_filter(
    cursor: Cursor, one: JobFilter, other: JobFilter, view: JobView, name: str
) -> None:
    changed = replace(one, **{name: getattr(other, name)})
    assume(one != changed)
    with pytest.raises(InvalidPageToken):
        page_tokens.decode(page_tokens.encode(cursor, one, view), changed, view)


TOKEN_LETTERS = string.ascii_letters + string.digits + "-_+/="


@given(token=st.text(max_size=60) | st.text(TOKEN_LETTERS, min_size=40, max_size=48))
def test_what_is_no_page_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidPageToken):
        page_tokens.decode(token, JobFilter(), JobView.BASIC)


@settings(max_examples=100)
@given(cursor=cursors, place=st.integers(0, 43), letter=st.sampled_from(TOKEN_LETTERS), keep=st.booleans())
def test_a_page_token_has_one_spelling(cursor: Cursor, place: int, letter: str, keep: bool) -> None:
    token = page_tokens.encode(cursor, JobFilter(), JobView.BASIC)
    other = token.replace("-", "+").replace("_", "/") if keep else token[:place] + letter + token[place + 1 :]
    assume(other != token)
    with pytest.raises(InvalidPageToken):
        page_tokens.decode(other, JobFilter(), JobView.BASIC)


@given(moment=moments, nanos=st.integers(0, 999))
def test_a_bound_of_time_leaves_the_same_jobs_as_its_nanoseconds(moment: datetime, nanos: int) -> None:
    assume(moment < datetime.max.replace(tzinfo=UTC) or nanos == 0)
    sent = Timestamp()
    sent.FromDatetime(moment)
    sent.nanos += nanos
    wanted = requests.job_filter(jobs_pb2.JobFilter(create_time_from=sent), owner_id=None)
    # A job's time has microseconds: at this bound or after it is the same as at the next one or after.
    assert wanted.create_time_from == moment + timedelta(microseconds=1 if nanos else 0)


@given(seconds=st.integers(-(2**63), 2**63 - 1), nanos=st.integers(-(2**31), 2**31 - 1))
def test_a_timestamp_is_taken_exactly_where_it_is_valid(seconds: int, nanos: int) -> None:
    bound = Timestamp(seconds=seconds, nanos=nanos)
    asked = jobs_pb2.ListJobsRequest(filter=jobs_pb2.JobFilter(create_time_from=bound))
    valid = -62_135_596_800 <= seconds <= 253_402_300_799 and 0 <= nanos <= 999_999_999
    if valid:
        requests.check_list(asked)
    else:
        with pytest.raises(InvalidRequest):
            requests.check_list(asked)


@given(number=st.integers(-(2**31), 2**31 - 1) | st.integers(-1, 7))
def test_an_enum_is_taken_exactly_where_it_is_known(number: int) -> None:
    def is_refused(asked: jobs_pb2.ListJobsRequest) -> bool:
        try:
            requests.check_list(asked)
        except InvalidRequest:
            return True
        return False

    view: Any = number
    assert is_refused(jobs_pb2.ListJobsRequest(view=view)) == (number not in {0, 1, 2})
    assert is_refused(jobs_pb2.ListJobsRequest(filter=jobs_pb2.JobFilter(statuses=[view]))) == (
        number not in range(1, 6)
    )
    assert is_refused(jobs_pb2.ListJobsRequest(filter=jobs_pb2.JobFilter(run_types=[view]))) == (
        number not in range(1, 5)
    )


@given(text=st.text(max_size=9) | st.from_regex(r"[a-zA-Z\u212a]{1,3}\d{4,6}", fullmatch=True))
@example(text="\u212aa10000")  # the Kelvin sign, a k in lower case
def test_a_soeid_is_two_letters_and_five_digits_of_ascii(text: str) -> None:
    ascii_letters, digits = set(string.ascii_letters), set(string.digits)
    valid = len(text) == 7 and set(text[:2]) <= ascii_letters and set(text[2:]) <= digits
    assert normalized_soeid(text) == (text.lower() if valid else None)
