"""Every field of every request of JobsService, each with values that it must take or refuse."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tests.support.judge import METHODS, tagged, varint

INT32 = (-(2**31), 2**31 - 1)
INT64 = (-(2**63), 2**63 - 1)
UUID = "0198a7c2-7d3e-7b41-9c55-3f6d2a1b4c8e"

BAD_UUIDS = {
    "in braces": f"{{{UUID}}}",
    "as a URN": f"urn:uuid:{UUID}",
    "without hyphens": UUID.replace("-", ""),
    "of 35 characters": UUID[:-1],
    "of 37 characters": UUID + "0",
    "with a letter that is no digit": UUID[:-1] + "g",
    "with full-width digits": UUID.replace("0", "\uff10"),
    "with Arabic digits": UUID.replace("3", "\u0663"),
    "with hyphens elsewhere": UUID.replace("-", "", 1)[:20] + "-" + UUID.replace("-", "", 1)[20:],
    "with spaces around": f" {UUID[1:-1]} ",
    "with a line's end": UUID + "\n",
    "with a NUL": UUID[:-1] + "\0",
    "that is SQL": "' OR 1=1 --",
    "of a megabyte": "a" * 2**20,
}


@dataclass(frozen=True, slots=True)
class Case:
    """A value of one field. fields: set in a request that is good otherwise; wire: bytes put after it.

    wrong: the path that is refused, None where the call passes validation; code and reason of the
    answer; limit: what the metadata say about it.
    """

    path: str
    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    wrong: str | None = None
    code: str = "OK"
    reason: str = ""
    limit: int | None = None
    wire: bytes = b""

    @property
    def rpc(self) -> str:
        """The method's name."""
        return self.path.partition(".")[0]

    def __str__(self) -> str:
        """The name of the test."""
        return f"{self.path}: {self.name}"


def bad(path: str, name: str, value: Any, *, at: str = "", **more: Any) -> Case:
    """A value of the field that is INVALID_FIELD; at: the place in it, where that is a part."""
    inner = path.partition(".")[2]
    answer = {"code": "INVALID_ARGUMENT", "reason": "INVALID_FIELD"} | more
    return Case(path, name, nested(inner, value), inner + at, **answer)


def good(path: str, name: str, value: Any, **more: Any) -> Case:
    """A value that the field takes; more: what the call answers all the same."""
    return Case(path, name, nested(path.partition(".")[2], value), **more)


def nested(path: str, value: Any) -> dict[str, Any]:
    """{"filter": {"user_id": value}} for "filter.user_id"."""
    for name in reversed(path.split(".")):
        value = {name: value}
    result: dict[str, Any] = value
    return result


def request_fields() -> Iterator[tuple[str, FieldDescriptor, list[FieldDescriptor]]]:
    """Every field of every request: "ListJobs.filter.user_id", it, and the messages around it."""
    for name, method in METHODS.items():
        yield from _fields(name, method.input_type, [])


def _fields(
    path: str, message: Descriptor, around: list[FieldDescriptor]
) -> Iterator[tuple[str, FieldDescriptor, list[FieldDescriptor]]]:
    for each in message.fields:
        here = f"{path}.{each.name}"
        yield here, each, around
        inner = each.message_type
        if inner is not None and inner.full_name.startswith("jobs.v1."):
            yield from _fields(here, inner, [*around, each])


def _texts(path: str, limit: int, alphabet: str = "x\u00e9\u20ac\U0001f600") -> Iterator[Case]:
    for letter in alphabet:
        width = len(letter.encode())
        full = letter * (limit // width) + "x" * (limit % width)
        yield good(path, f"{limit} bytes of {width}-byte letters", full)
        yield bad(path, f"one byte over {limit}, {width}-byte letters", full + "x", limit=limit)
        yield bad(path, f"one {width}-byte letter over {limit}", full[1:] + letter * 2, limit=limit)
    yield bad(path, "a NUL", "a\0b")
    yield bad(path, "a megabyte", "x" * 2**20, limit=limit)


def _uuids(path: str, unknown: dict[str, Any]) -> Iterator[Case]:
    for name, text in BAD_UUIDS.items():
        yield bad(path, f"a UUID {name}", text)
    for name, text in (
        ("upper case", UUID.upper()),
        ("all zeros", "0" * 8 + "-0000" * 3 + "-" + "0" * 12),
        ("all ones", "f" * 8 + "-ffff" * 3 + "-" + "f" * 12),
    ):
        yield good(path, f"a UUID in {name}", text, **unknown)


def _numbers(
    path: str, lowest: int, highest: int, kind: tuple[int, int], *, limit: int | None = None
) -> Iterator[Case]:
    for value in {lowest, highest}:
        yield good(path, f"{value}, the edge", value)
    for value in sorted({lowest - 1, kind[0], highest + 1, kind[1]}):
        if not lowest <= value <= highest and kind[0] <= value <= kind[1]:
            yield bad(path, f"{value}, out of range", value, limit=limit)


_INVALID = ("INVALID_ARGUMENT", "INVALID_FIELD")
_MISSING_JOB = {"code": "NOT_FOUND", "reason": "JOB_NOT_FOUND"}
_NO_USER = {"code": "NOT_FOUND", "reason": "USER_NOT_FOUND"}
_DENIED = {"code": "PERMISSION_DENIED", "reason": "DATASET_PERMISSION_DENIED"}
_TOKEN = {"code": "INVALID_ARGUMENT", "reason": "INVALID_PAGE_TOKEN"}


def _create_job() -> Iterator[Case]:
    yield bad("CreateJob.dataset_id", "missing", 0)
    yield bad("CreateJob.dataset_id", "negative", -1)
    yield bad("CreateJob.dataset_id", "the least", INT64[0])
    yield good("CreateJob.dataset_id", "the most", INT64[1], **_DENIED)
    for number in (0, 5, 99, *INT32):
        yield bad("CreateJob.run_type", f"the number {number}", number)
    for name, text in (
        ("63 digits", "a" * 63),
        ("65 digits", "a" * 65),
        ("no digit", "g" * 64),
        ("full-width digits", "\uff10" * 64),
        ("Arabic digits", "\u0663" * 64),
        ("a line's end", "a" * 64 + "\n"),
        ("a NUL", "a" * 63 + "\0"),
        ("a megabyte", "a" * 2**20),
    ):
        yield bad("CreateJob.source_commit_id", name, text)
    yield good("CreateJob.source_commit_id", "upper case", "A" * 64)
    yield bad("CreateJob.run_parameters", "missing", None)
    yield good("CreateJob.run_parameters", "other keys beside", {"file_path": "a", "k": [{}, [], None, ""]})
    yield from _texts("CreateJob.description", 1000)
    yield from _texts("CreateJob.external_id", 128)
    yield from _numbers("CreateJob.priority", 0, 100, INT32, limit=100)
    yield Case("CreateJob.priority", "cut to 32 bits", wire=tagged(7, 0, varint(2**32 + 7)))
    yield from _schedule()
    yield from _uuids("CreateJob.request_id", {})
    yield good("CreateJob.request_id", "empty is none", "")
    yield good("CreateJob.validate_only", "true", True)
    yield Case("CreateJob.validate_only", "a number of 64 bits", wire=tagged(15, 0, varint(2**63)))


def _schedule() -> Iterator[Case]:
    """When, how often and after what a job runs."""
    yield from _numbers("CreateJob.max_attempts", 1, 100, INT32, limit=100)
    yield bad("CreateJob.max_attempts", "0, given", 0, limit=100)
    month, day = 30 * 86_400, 86_400
    yield from _spans("CreateJob.start_delay", 0, month)
    yield _not_a_message("CreateJob.start_delay", 9)
    yield from _spans("CreateJob.run_timeout", 1, month)
    yield _not_a_message("CreateJob.run_timeout", 10)
    yield bad("CreateJob.run_timeout", "a nanosecond", {"nanos": 1}, limit=month)
    yield good("CreateJob.retry_policy", "empty", {})
    yield _not_a_message("CreateJob.retry_policy", 11)
    yield from _spans("CreateJob.retry_policy.initial_backoff", 0, day)
    # 1 s is the first wait where none is given.
    yield from _spans("CreateJob.retry_policy.max_backoff", 1, day)
    path = "CreateJob.retry_policy.max_backoff"
    policy = {"initial_backoff": {"seconds": 700}, "max_backoff": {"seconds": 699, "nanos": 999_999_000}}
    yield replace(bad(path, "below the first", None, limit=day), fields={"retry_policy": policy})
    policy = {"initial_backoff": {"seconds": 700}, "max_backoff": {"seconds": 700}}
    yield replace(good(path, "the same as the first", None), fields={"retry_policy": policy})
    path = "CreateJob.retry_policy.backoff_multiplier"
    for number in (0.0, 0.999, 10.001, -1.0, 1e308, float("nan"), float("inf"), float("-inf")):
        yield bad(path, str(number), number, limit=10)
    yield from (good(path, str(number), number) for number in (1.0, 1.5, 10.0))
    yield from _depends_on()


def _depends_on() -> Iterator[Case]:
    path = "CreateJob.depends_on_job_ids"
    missing = {"code": "NOT_FOUND", "reason": "DEPENDENCY_NOT_FOUND"}
    for name, text in BAD_UUIDS.items():
        yield bad(path, f"a UUID {name}", [UUID, text], at="[1]")
    yield bad(path, "an empty one", [""], at="[0]")
    yield bad(path, "one twice, in another case", [UUID, UUID.upper()], at="[1]")
    yield good(path, "none", [])
    yield good(path, "one that is not there", [UUID.upper()], **missing)
    some = [f"{UUID[:-4]}{number:04x}" for number in range(101)]
    yield good(path, "a hundred that are not there", some[:100], **missing)
    yield bad(path, "a hundred and one", some, limit=100)
    yield bad(path, "a hundred thousand", ["x"] * 100_000, limit=100)
    for number in (3, 99, *INT32):
        yield bad("CreateJob.on_dependency_failure", f"the number {number}", number)
    for number in (0, 1, 2):
        yield good("CreateJob.on_dependency_failure", f"the number {number}", number)
    for indexes in ([0], [-1], [0] * 101, [INT32[1]]):
        yield bad("CreateJob.depends_on_indexes", f"{indexes[:3]}, {len(indexes)} of them", indexes)
    yield good("CreateJob.depends_on_indexes", "none", [])


def _spans(path: str, lowest: int, highest: int) -> Iterator[Case]:
    for seconds in sorted({lowest, highest}):
        yield good(path, f"{seconds} s, the edge", {"seconds": seconds})
    yield good(path, "1.000000001 s", {"seconds": 1, "nanos": 1})
    yield bad(path, "a nanosecond over", {"seconds": highest, "nanos": 1}, limit=highest)
    for seconds in sorted({lowest - 1, highest + 1, *INT64}):
        yield bad(path, f"{seconds} s", {"seconds": seconds}, limit=highest)
    yield bad(path, "negative nanoseconds", {"nanos": -1_000}, limit=highest)
    yield bad(path, "signs that differ", {"seconds": 2, "nanos": -1}, limit=highest)
    for nanos in (10**9, *INT32):
        yield bad(path, f"{nanos} ns", {"seconds": 2, "nanos": nanos}, limit=highest)


def _not_a_message(path: str, number: int) -> Case:
    case = bad(path, "no message of its type", None)
    return replace(case, fields={}, wrong="request", wire=tagged(number, 2, b"\x0a"))


def _list_jobs() -> Iterator[Case]:
    yield good("ListJobs.filter", "empty", {})
    yield _not_a_message("ListJobs.filter", 1)
    yield from (bad("ListJobs.filter.user_id", str(number), number) for number in (0, -1, INT64[0]))
    yield good("ListJobs.filter.user_id", "nobody's", INT64[1], **_NO_USER)
    for text in ("", "us1000", "us100000", "u100000", "1000000", "us1000\u0660", "\u212aa10000", "us10000\n",
                 "us10000\0", "' OR 1=1", "x" * 2**20):  # fmt: skip
        yield bad("ListJobs.filter.user_soeid", ascii(text[:20]), text)
    yield good("ListJobs.filter.user_soeid", "nobody's", "zz00000", **_NO_USER)
    yield from (bad("ListJobs.filter.dataset_id", str(number), number) for number in (0, -1, INT64[0]))
    yield good("ListJobs.filter.dataset_id", "nobody's", INT64[1])
    for name, known in (("statuses", 5), ("run_types", 4)):
        path = f"ListJobs.filter.{name}"
        for number in (0, known + 1, 99, *INT32):
            yield bad(path, f"the number {number}", [1, number], at="[1]")
        yield good(path, "ten, one of them ten times", [1] * 10)
        yield good(path, "every one", list(range(1, known + 1)))
        yield bad(path, "eleven", [1] * 11, limit=10)
        yield bad(path, "eleven unknown ones", [99] * 11, limit=10)
        yield bad(path, "a hundred thousand", [1] * 100_000, limit=10)
    yield from _texts("ListJobs.filter.external_id", 128)
    yield bad("ListJobs.filter.external_id", "empty", "")
    for name in ("create_time_from", "create_time_to"):
        yield from _times(f"ListJobs.filter.{name}")
    same = {"create_time_from": {"seconds": 9}, "create_time_to": {"seconds": 9}}
    crossed = same | {"create_time_to": {"seconds": 8, "nanos": 999_999_000}}
    yield Case("ListJobs.filter.create_time_to", "equal to create_time_from", {"filter": same})
    wrong = bad("ListJobs.filter.create_time_from", "after create_time_to", None)
    yield replace(wrong, fields={"filter": crossed})
    yield from (bad("ListJobs.page_size", str(number), number) for number in (-1, INT32[0]))
    yield from (good("ListJobs.page_size", str(number), number) for number in (0, 1, 1000, 1001, INT32[1]))
    for name, token in (
        ("one letter", "x"),
        ("no base64", "!!!!"),
        ("of a future version", "Ag" + "A" * 42),
        ("too short", "AQ" * 10),
        ("too long", "AQ" * 1000),
        ("all zeros", "AQ" + "A" * 42),
        ("not ASCII", "\u00e9" * 44),
        ("a NUL", "\0" * 44),
        ("padding alone", "===="),
        ("a megabyte", "A" * 2**20),
    ):
        yield bad("ListJobs.page_token", name, token, **_TOKEN)
    yield from _numbers("ListJobs.skip", 0, 10_000, INT32, limit=10_000)
    yield good("ListJobs.include_total_size", "true", True)
    yield from _views("ListJobs.view")


def _times(path: str) -> Iterator[Case]:
    for seconds in (-62_135_596_801, 253_402_300_800, *INT64):
        yield bad(path, f"{seconds} s", {"seconds": seconds})
    for nanos in (-1, 10**9, *INT32):
        yield bad(path, f"{nanos} ns", {"nanos": nanos})
    yield good(path, "the first moment of year 1", {"seconds": -62_135_596_800})
    yield good(path, "the last second of year 9999", {"seconds": 253_402_300_799})
    last = {"seconds": 253_402_300_799, "nanos": 999_999_999}
    yield good(path, "the last nanosecond of year 9999", last)


def _views(path: str) -> Iterator[Case]:
    for number in (3, 99, *INT32):
        yield bad(path, f"the number {number}", number)
    yield from (good(path, f"the number {number}", number) for number in (0, 1, 2))


def _in_a_batch(case: Case) -> Case:
    """The case of a CreateJob as an entry of BatchCreateJobs."""
    path = case.path.replace("CreateJob.", "BatchCreateJobs.requests.")
    wrong = None if case.wrong is None else f"requests[0].{case.wrong}"
    return replace(case, path=path, fields={"requests": [case.fields]}, wrong=wrong)


def _batch_create() -> Iterator[Case]:
    path = "BatchCreateJobs.requests"
    yield bad(path, "none", [])
    yield bad(path, "a thousand and one", [{}] * 1001, limit=1000)
    yield bad(path, "a hundred thousand", [{}] * 100_000, limit=1000)
    yield good(path, "one", [{}])
    for case in _create_job():
        if not case.wire and not case.path.endswith(".depends_on_indexes"):
            yield _in_a_batch(case)
    policy = tagged(1, 2, tagged(11, 2, b"\x0a"))
    yield Case(f"{path}.retry_policy", "no message of its type", {}, "request", *_INVALID, wire=policy)
    path += ".depends_on_indexes"
    for indexes, at in (([1], "[0]"), ([2], "[0]"), ([-1], "[0]"), ([0, 0], "[1]"), ([INT32[1]], "[0]")):
        yield replace(
            _second(path, f"{indexes}", indexes, at), code="INVALID_ARGUMENT", reason="INVALID_FIELD"
        )
    many = _second(path, "101", [0] * 101, "")
    yield replace(many, code="INVALID_ARGUMENT", reason="INVALID_FIELD", limit=100)
    yield replace(_second(path, "an earlier one", [0], ""), wrong=None)


def _second(path: str, name: str, indexes: list[int], at: str) -> Case:
    """A batch of two entries, the second of which waits for these."""
    wrong = f"requests[1].depends_on_indexes{at}"
    return Case(path, name, {"requests": [{}, {"depends_on_indexes": indexes}]}, wrong)


def _many_ids(path: str) -> Iterator[Case]:
    yield bad(path, "a thousand and one", [UUID] * 1001, limit=1000)
    yield bad(path, "a hundred thousand that are none", ["x"] * 100_000, limit=1000)
    yield good(path, "a thousand", [UUID] * 1000)
    for name, text in BAD_UUIDS.items():
        yield bad(path, f"a UUID {name}", [UUID, text], at="[1]")
    yield bad(path, "an empty one", [UUID, ""], at="[1]")


def _batch_cancel() -> Iterator[Case]:
    yield from _many_ids("BatchCancelJobs.job_ids")
    yield replace(bad("BatchCancelJobs.job_ids", "none, and no filter", []), fields={"job_ids": []})
    path = "BatchCancelJobs.filter"
    some = {"external_id": "of no job"}
    yield Case(path, "beside ids", {"job_ids": [UUID], "filter": some}, path.partition(".")[2], *_INVALID)
    yield bad(path, "empty", {})
    yield good(path, "that no job matches", some)
    for case in _list_jobs():
        if case.path.startswith("ListJobs.filter."):
            yield replace(case, path=case.path.replace("ListJobs.", "BatchCancelJobs."))
    yield from _texts("BatchCancelJobs.reason", 500)


def _cases() -> Iterator[Case]:
    yield from _create_job()
    yield from _list_jobs()
    for rpc in ("GetJob", "GetJobStatus", "CancelJob", "RetryJob"):
        yield bad(f"{rpc}.job_id", "missing", "")
        yield from _uuids(f"{rpc}.job_id", _MISSING_JOB)
    yield from _views("GetJob.view")
    yield from _texts("CancelJob.reason", 500)
    yield from _batch_create()
    yield bad("BatchGetJobs.job_ids", "none", [])
    yield from _many_ids("BatchGetJobs.job_ids")
    yield from _views("BatchGetJobs.view")
    yield from _batch_cancel()


CASES = list(_cases())
