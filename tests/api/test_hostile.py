"""Messages that are none, metadata that make no sense, methods that do not exist."""

import random
import uuid
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from jobs.v1 import jobs_pb2
from jobs_service.model.caller import Level, Role
from tests.support.client import Metadata
from tests.support.judge import (
    DEADLINE,
    EVERY_METHOD,
    METHODS,
    SERVICE,
    Judge,
    judged,
    message,
    tagged,
    varint,
)
from tests.support.request_cases import UUID, request_fields
from tests.support.service import ServiceProcess, wait_until
from tests.support.world import World

JOBS = f"/{SERVICE.full_name}/"
COMMIT = "ab" * 32
JUDGED = {"INVALID_ARGUMENT", "OK", "PERMISSION_DENIED", "NOT_FOUND"}
"""What a stranger's message can come to that may be a good one."""
# One good request of each type, with every field in it.
FULL: dict[str, Message] = {
    "CreateJob": message(
        "CreateJob",
        dataset_id=1,
        run_type=jobs_pb2.RUN_TYPE_SAMPLING,
        source_commit_id=COMMIT,
        run_parameters={"rounds": [{"method": "random", "sample_size": 5}], "more": [None, True, "\u00e9"]},
        description="\u00e9\u20ac\U0001f600",
        external_id="e",
        priority=7,
        request_id=UUID,
        validate_only=True,
        max_attempts=5,
        start_delay={"seconds": 1},
        run_timeout={"seconds": 2, "nanos": 3},
        retry_policy={"initial_backoff": {"seconds": 1}, "backoff_multiplier": 2},
        depends_on_job_ids=[UUID],
        on_dependency_failure=jobs_pb2.ON_DEPENDENCY_FAILURE_KEEP_WAITING,
    ),
    "ListJobs": message(
        "ListJobs",
        filter={
            "user_soeid": "zz00000",
            "dataset_id": 1,
            "statuses": [1, 2, 3],
            "run_types": [1, 4],
            "external_id": "e",
            "create_time_from": {"seconds": 1},
            "create_time_to": {"seconds": 2, "nanos": 3},
        },
        page_size=5,
        page_token="AQ" * 22,
        skip=1,
        include_total_size=True,
        view=jobs_pb2.JOB_VIEW_FULL,
    ),
    "GetJob": message("GetJob", job_id=UUID, view=jobs_pb2.JOB_VIEW_BASIC),
    "GetJobStatus": message("GetJobStatus", job_id=UUID),
    "CancelJob": message("CancelJob", job_id=UUID, reason="r"),
    "RetryJob": message("RetryJob", job_id=UUID),
    "BatchCreateJobs": message(
        "BatchCreateJobs",
        requests=[
            {"dataset_id": 1, "run_type": 3, "run_parameters": {"table_key": "k"}, "request_id": UUID},
            {"dataset_id": 1, "run_type": 1, "run_parameters": {"file_path": "p"}, "depends_on_indexes": [0]},
        ],
    ),
    "BatchGetJobs": message("BatchGetJobs", job_ids=[UUID, UUID], view=jobs_pb2.JOB_VIEW_FULL),
    "BatchCancelJobs": message(
        "BatchCancelJobs", filter={"external_id": "e", "statuses": [1, 2]}, reason="r"
    ),
}


@pytest.fixture(scope="module")
def world(module_world: World) -> World:
    return module_world


@pytest.fixture(scope="module")
def stranger(world: World) -> Judge:
    """Calls as somebody without any permission: whatever it sends, nothing may be written."""
    return Judge(world, world.client(world.user()))


@pytest.fixture(scope="module")
def dataset(world: World) -> int:
    return world.dataset()


def test_every_rpc_has_a_full_request_here() -> None:
    assert set(FULL) == set(METHODS)
    # With them these would be bad requests.
    left_out = {"CreateJob": {"depends_on_indexes"}, "BatchCancelJobs": {"job_ids"}}
    for rpc, full in FULL.items():
        known = {field.name for field in METHODS[rpc].input_type.fields} - left_out.get(rpc, set())
        assert {field.name for field, _ in full.ListFields()} == known


@pytest.mark.parametrize("rpc", EVERY_METHOD)
def test_random_bytes_never_break_anything(stranger: Judge, rpc: str) -> None:
    dice = random.Random(f"bytes for {rpc}")
    for size in [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 1000, 100_000] * 5:
        answer = stranger.send(rpc, dice.randbytes(size))
        # The shortest may be messages: fields that nobody knows.
        assert answer.code in JUDGED
        assert size < 1000 or answer.fields == ["request"]


@pytest.mark.parametrize("rpc", METHODS)
def test_a_message_cut_anywhere_never_breaks_anything(stranger: Judge, rpc: str) -> None:
    whole = FULL[rpc].SerializeToString()
    for length in range(len(whole)):
        assert stranger.send(rpc, whole[:length]).code in JUDGED


@pytest.mark.parametrize("rpc", METHODS)
def test_a_message_with_flipped_bits_never_breaks_anything(stranger: Judge, rpc: str) -> None:
    dice = random.Random(f"bits for {rpc}")
    for _ in range(150):
        damaged = bytearray(FULL[rpc].SerializeToString())
        for _ in range(dice.choice([1, 1, 2, 5])):
            damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        answer = stranger.send(rpc, bytes(damaged))
        assert answer.code in JUDGED


_TEXTS = [
    pytest.param(path, each, around, id=path)
    for path, each, around in request_fields()
    if each.cpp_type == each.CPPTYPE_STRING
]


@pytest.mark.parametrize(("path", "each", "around"), _TEXTS)
def test_a_text_that_is_no_utf8_makes_the_message_undecodable(
    stranger: Judge, path: str, each: FieldDescriptor, around: list[FieldDescriptor]
) -> None:
    rpc = path.partition(".")[0]
    for text in (b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf5\x80\x80\x80", b"\x80"):
        wire = tagged(each.number, 2, text)
        for outer in reversed(around):
            wire = tagged(outer.number, 2, wire)
        answer = stranger.send(rpc, FULL[rpc].SerializeToString() + wire)
        assert (answer.refusal.reason, answer.fields) == ("INVALID_FIELD", ["request"])


@pytest.mark.parametrize("place", ["key", "value"])
def test_a_struct_with_a_text_that_is_no_utf8_is_undecodable(stranger: Judge, place: str) -> None:
    key, value = (b"\xff", b"v") if place == "key" else (b"k", b"\xff")
    struct = tagged(1, 2, tagged(1, 2, key) + tagged(2, 2, tagged(3, 2, value)))
    answer = stranger.send("CreateJob", FULL["CreateJob"].SerializeToString() + tagged(4, 2, struct))
    assert answer.fields == ["request"]


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip, grpc.Compression.Deflate], ids=str)
@pytest.mark.parametrize("rpc", METHODS)
def test_a_message_over_4_mib_is_refused_by_the_transport(
    stranger: Judge, rpc: str, compression: grpc.Compression | None
) -> None:
    answer = stranger.send(rpc, tagged(999, 2, b"x" * 5 * 2**20), compression=compression)
    assert answer.code == "RESOURCE_EXHAUSTED"
    assert stranger.send("ListJobs", b"").code == "OK"


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate], ids=str)
def test_a_compressed_message_is_a_message_like_any_other(
    stranger: Judge, compression: grpc.Compression
) -> None:
    assert stranger.send("ListJobs", b"", compression=compression).code == "OK"
    for size, code in ((1000, "NOT_FOUND"), (2**21, "NOT_FOUND")):
        request = FULL["GetJob"].SerializeToString() + tagged(999, 2, b"x" * size)
        assert stranger.send("GetJob", request, compression=compression).code == code
    assert stranger.send("GetJob", b"\xff" * 2**20, compression=compression).fields == ["request"]


@pytest.mark.parametrize(
    "path",
    [
        JOBS,
        f"{JOBS}Nope",
        f"{JOBS}createJob",
        f"{JOBS}CreateJob/",
        f"/{JOBS}CreateJob",
        f"{JOBS}../v1.JobsService/CreateJob",
        "/jobs.v1.Nobody/CreateJob",
        "/jobs.v1.AccessService/DeleteEverybody",
        "/grpc.health.v1.Health/Nope",
        "/grpc.health.jobs.v1.JobsService/CreateJob",
        "/grpc.reflection.v1.ServerReflection/Nope",
        "/grpc.channelz.v1.Channelz/GetServers",
        "/",
        "",
        "nonsense",
        "/\u00e9",
        "/" + "x" * 8000,
    ],
    ids=lambda path: ascii(path[:50]),
)
@pytest.mark.parametrize("known", [True, False], ids=["with credentials", "without"])
def test_a_method_that_does_not_exist_is_unimplemented(stranger: Judge, path: str, known: bool) -> None:
    answer = stranger.send(path, b"\xff", metadata=None if known else ())
    assert answer.code == "UNIMPLEMENTED"
    assert "jobs" not in answer.message


def test_the_list_of_the_health_service_is_answered_or_unimplemented(stranger: Judge) -> None:
    # grpc.health.v1 has it, the servicer of grpcio-health-checking has not.
    assert stranger.send("/grpc.health.v1.Health/List", b"", metadata=()).code in {"OK", "UNIMPLEMENTED"}


@pytest.mark.parametrize("rpc", METHODS)
@pytest.mark.parametrize("data", [b"", b"\xff"], ids=["empty", "undecodable"])
def test_every_rpc_needs_credentials_before_its_message_is_looked_at(
    stranger: Judge, rpc: str, data: bytes
) -> None:
    answer = stranger.send(rpc, data, metadata=())
    assert (answer.code, answer.refusal.reason) == ("UNAUTHENTICATED", "CREDENTIALS_MISSING")
    assert answer.refusal.metadata == {}


def test_health_needs_no_credentials(world: World) -> None:
    stub: Any = health_pb2_grpc.HealthStub(world.channel())
    for service in ("", SERVICE.full_name, "liveness"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE)
        assert answer.status == answer.SERVING
        watched = stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE)
        assert next(iter(watched)).status == answer.SERVING
        watched.cancel()


@pytest.mark.parametrize("request_bytes", [b"\xff", tagged(1, 2, b"\xff"), tagged(1, 2, b"no.Such")])
def test_a_bad_health_check_is_refused(stranger: Judge, request_bytes: bytes) -> None:
    call: Any = stranger.world.channel().unary_unary("/grpc.health.v1.Health/Check")
    with pytest.raises(grpc.RpcError) as caught:
        call(request_bytes, timeout=DEADLINE)
    error: Any = caught.value
    assert error.code().name == ("NOT_FOUND" if request_bytes.endswith(b"Such") else "INVALID_ARGUMENT")


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_needs_no_credentials_and_takes_no_nonsense(world: World, version: str) -> None:
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    call: Any = world.channel().stream_stream(path)
    asked = reflection_pb2.ServerReflectionRequest(list_services="*").SerializeToString()
    answered = reflection_pb2.ServerReflectionResponse.FromString(
        next(iter(call(iter([asked]), timeout=DEADLINE)))
    )
    assert SERVICE.full_name in {each.name for each in answered.list_services_response.service}
    with pytest.raises(grpc.RpcError) as caught:
        list(call(iter([asked, b"\xff"]), timeout=DEADLINE))
    assert judged(caught.value).fields == ["request"]


def test_a_call_with_several_messages_is_answered_once(stranger: Judge) -> None:
    call: Any = stranger.world.channel().stream_unary(f"{JOBS}ListJobs")
    for messages in ([b"", b""], [b"", b"\xff"], [b""] * 100):
        call(iter(messages), timeout=DEADLINE, metadata=stranger.client.metadata)


NOISE: dict[str, Metadata] = {
    "binary": (("x-noise-bin", bytes(range(256))), ("authorization-bin", b"Bearer x")),
    "a hundred": tuple((f"x-noise-{number}", "v" * 80) for number in range(100)),
    "one name a hundred times": (("x-noise", "v"),) * 100,
    "strange names": (("x_noise.-1", "v"), ("0", "v"), ("x-on-behalf-of-bin", b"\xff")),
    "other people's": (("grpc-trace-bin", b"\xff" * 50), ("traceparent", "00-zz-zz-zz"), ("cookie", "a=b")),
}


@pytest.mark.parametrize("noise", NOISE)
def test_metadata_that_nobody_asked_for_change_nothing(stranger: Judge, noise: str) -> None:
    metadata = stranger.client.metadata + NOISE[noise]
    assert stranger.send("ListJobs", b"", metadata=metadata).code == "OK"
    answer = stranger.send("GetJob", b"", metadata=metadata)
    assert answer.fields == ["job_id"]
    assert stranger.send("GetJob", b"", metadata=NOISE[noise]).code == "UNAUTHENTICATED"


def test_more_metadata_than_16_kib_are_refused_by_the_transport(stranger: Judge) -> None:
    metadata = (*stranger.client.metadata, ("x-noise", "v" * 20_000))
    assert stranger.send("ListJobs", b"", metadata=metadata).code == "RESOURCE_EXHAUSTED"


MALFORMED = [
    "",
    " ",
    "x",
    "us1000",
    "us100000",
    "10000us",
    "us1000a",
    "us10000,us10001",
    "' OR 1=1",
    "x" * 5000,
]


@pytest.mark.parametrize("value", MALFORMED, ids=lambda value: repr(value[:20]))
def test_an_on_behalf_header_that_is_no_soeid_is_refused(stranger: Judge, value: str) -> None:
    subject = stranger.world.user()
    for program in (stranger.world.user(Role.SERVICE), stranger.world.user()):
        values = [subject.soeid] * 2 if value == "twice" else [value]
        headers = tuple(("x-on-behalf-of", each) for each in values)
        metadata = stranger.world.client(program).metadata + headers
        for rpc in METHODS:
            answer = stranger.send(rpc, FULL[rpc], metadata=metadata)
            assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", ["x-on-behalf-of"])


def test_ones_own_soeid_as_the_on_behalf_header_changes_nothing(stranger: Judge, dataset: int) -> None:
    for role in Role:
        user = stranger.world.user(role, grants={dataset: Level.WRITE})
        for soeid in (user.soeid, user.soeid.upper()):
            job = stranger.world.client(user, on_behalf_of=soeid).create(dataset_id=dataset).job
            assert (job.user_soeid, job.creator_soeid) == (user.soeid, "")


def test_only_who_may_act_for_others_learns_who_exists(stranger: Judge) -> None:
    world, existing = stranger.world, stranger.world.user()
    program, user, other = world.user(Role.SERVICE), world.user(), world.user(Role.SERVICE)
    for sender, subject, code, metadata in (
        (user, existing.soeid, "PERMISSION_DENIED", {"required_role": "service"}),
        (user, "zz00000", "PERMISSION_DENIED", {"required_role": "service"}),
        (program, other.soeid, "PERMISSION_DENIED", {"required_role": "user"}),
        (program, "ZZ00000", "NOT_FOUND", {"user_soeid": "zz00000"}),
    ):
        headers = world.client(sender, on_behalf_of=subject).metadata
        for rpc in METHODS:
            request: Any = b"" if rpc == "ListJobs" else FULL[rpc]
            answer = stranger.send(rpc, request, metadata=headers)
            assert (answer.code, answer.refusal.metadata) == (code, metadata)


@pytest.mark.parametrize("value", ["a-b.c_d:e/f+g=@1", "x" * 128, str(uuid.UUID(int=7))])
def test_a_plain_correlation_id_comes_back_and_stands_in_the_access_log(
    stranger: Judge, shared_service: tuple[str, ServiceProcess], value: str
) -> None:
    mark = f"{random.randrange(10**9)}"
    value = value[: 128 - len(mark)] + mark
    for rpc, data, code in (("ListJobs", b"", "OK"), ("GetJob", b"", "INVALID_ARGUMENT")):
        metadata = (*stranger.client.metadata, ("x-correlation-id", value))
        assert stranger.send(rpc, data, metadata=metadata).trailers["x-correlation-id"] == value

        def logged(rpc: str = rpc) -> list[dict[str, Any]]:
            lines = shared_service[1].lines("call")
            return [line for line in lines if (line["correlation_id"], line["method"]) == (value, JOBS + rpc)]

        assert wait_until(logged, 5, "the line in the access log")[0]["code"] == code


@pytest.mark.parametrize(
    "values",
    [["x" * 129], ["a b"], [""], ['{"level":"ERROR"}'], ['"'], ["a", "b"], ["%0a{}"], ["a\\nb"], ["<b>"]],
    ids=repr,
)
def test_any_other_correlation_id_is_replaced_and_never_echoed(
    stranger: Judge, shared_service: tuple[str, ServiceProcess], values: list[str]
) -> None:
    metadata = (*stranger.client.metadata, *(("x-correlation-id", value) for value in values))
    for rpc in ("ListJobs", "GetJob"):
        made = str(stranger.send(rpc, b"", metadata=metadata).trailers["x-correlation-id"])
        assert str(uuid.UUID(made)) == made
    refused = str(stranger.send("GetJob", b"", metadata=metadata[1:]).trailers["x-correlation-id"])
    assert str(uuid.UUID(refused)) == refused
    logged = {line["correlation_id"] for line in shared_service[1].lines("call")}
    assert made in logged
    assert not logged & set(values)


@pytest.mark.parametrize("value", ["a\nb", "a\r\nx: y", "a\0b", "\u00e9"], ids=ascii)
def test_control_characters_in_metadata_never_leave_the_client(stranger: Judge, value: str) -> None:
    metadata = (*stranger.client.metadata, ("x-correlation-id", value))
    with pytest.raises((ValueError, TypeError, grpc.RpcError)):
        stranger.client.stub.ListJobs(jobs_pb2.ListJobsRequest(), metadata=metadata, timeout=DEADLINE)


def test_a_number_of_a_field_that_is_out_of_range_is_no_message(stranger: Judge) -> None:
    for wire in (varint(0), varint(2**32 << 3), b"\x80" * 11):
        assert stranger.send("ListJobs", wire).fields == ["request"]
