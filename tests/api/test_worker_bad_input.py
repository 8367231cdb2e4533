"""Every field of what workers send: what it takes, what it refuses, and how the refusal names it."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor

from jobs.v1 import workers_pb2
from tests.support.client import WorkerClient, refused
from tests.support.request_cases import BAD_UUIDS, UUID
from tests.support.world import World

SERVICE = workers_pb2.DESCRIPTOR.services_by_name["WorkersService"]
LEASE = {"job_id": UUID, "lease_token": "f" * 32}
GOOD: dict[str, dict[str, Any]] = {
    "ClaimJobs": {"worker_id": "w", "run_types": [1]},
    "HeartbeatJobs": {"leases": [LEASE]},
    "CompleteJob": LEASE,
    "FailJob": LEASE | {"error": {"type": "E"}},
    "ReleaseJob": LEASE,
    "FinishJobs": {"items": [{"release": LEASE}]},
}
"""Requests that are taken."""
TOO_LARGE = "PAYLOAD_TOO_LARGE"


@dataclass(frozen=True, slots=True)
class Case:
    """A value of one field. wrong: the path that is refused, None where it is taken."""

    path: str
    name: str
    value: Any
    wrong: str | None = None
    limit: int | None = None
    reason: str = "INVALID_FIELD"

    def __str__(self) -> str:
        return f"{self.path}: {self.name}"


def texts(path: str, limit: int, *, cut: bool = False) -> Iterator[Case]:
    inner = path.partition(".")[2]
    yield Case(path, "full", "\u20ac" * (limit // 3) + "x" * (limit % 3))
    if not cut:
        yield Case(path, "one byte too many", "\u20ac" * (limit // 3) + "x" * (limit % 3 + 1), inner, limit)
    yield Case(path, "a NUL", "a\0b", inner)


def durations(path: str, lowest: float, highest: float) -> Iterator[Case]:
    inner, most = path.partition(".")[2], int(highest)
    yield Case(path, "the shortest", timedelta(seconds=lowest))
    yield Case(path, "the longest", timedelta(seconds=highest))
    for name, value in (
        ("a nanosecond too long", {"seconds": most, "nanos": 1}),
        ("for ever", {"seconds": 2**63 - 1}),
        ("negative", {"seconds": -(2**63)}),
        ("too many nanoseconds", {"seconds": int(lowest) + 1, "nanos": 10**9}),
        ("signs that differ", {"seconds": int(lowest) + 1, "nanos": -1}),
    ):
        yield Case(path, name, value, inner, most)
    below = {"seconds": int(lowest) - 1, "nanos": 999_999_999} if lowest else {"nanos": -1}
    yield Case(path, "a nanosecond too short", below, inner, most)


def leases(path: str) -> Iterator[Case]:
    """job_id and lease_token of the message at this path."""
    inner = path.partition(".")[2]
    dot = f"{inner}." if inner else ""
    yield Case(f"{path}.job_id", "missing", "", f"{dot}job_id")
    yield Case(f"{path}.job_id", "upper case", UUID.upper())
    for name, text in BAD_UUIDS.items():
        yield Case(f"{path}.job_id", f"a UUID {name}", text, f"{dot}job_id")
    yield Case(f"{path}.lease_token", "missing", "", f"{dot}lease_token")
    yield Case(f"{path}.lease_token", "anything", "'; --")
    yield Case(f"{path}.lease_token", "full", "\u20ac" * 42 + "xx")
    yield Case(f"{path}.lease_token", "a byte too many", "\u20ac" * 42 + "xxx", f"{dot}lease_token", 128)
    yield Case(f"{path}.lease_token", "a megabyte", "x" * 2**20, f"{dot}lease_token", 128)


def structs(path: str, limit: int, reason: str) -> Iterator[Case]:
    inner = path.partition(".")[2]
    yield Case(path, "full", {"k": "x" * (limit - 8)})
    yield Case(path, "a byte too many", {"k": "x" * (limit - 7)}, inner, limit, reason)
    # Of the smallest JSON in the largest protobuf.
    yield Case(path, "many numbers", {"k": [0] * min(limit // 2, 250_000)}, inner, None, reason)
    yield Case(path, "written out", {"k": [1e308] * (limit // 7)}, inner, None, reason)
    yield Case(path, "NaN", {"k": [float("nan")]}, f"{inner}.k[0]")
    yield Case(path, "a NUL", {"k": {"a\0": 1}}, f'{inner}.k["a\\u0000"]')
    deep: Any = 1
    for _ in range(16):
        deep = {"k": deep}
    yield Case(path, "17 levels", {"k": deep}, inner + ".k" * 16, 16)


def completions(path: str) -> Iterator[Case]:
    yield from leases(path)
    yield from structs(f"{path}.output_summary", 1024 * 1024, TOO_LARGE)
    yield from texts(f"{path}.output_commit_id", 128)


def failures(path: str) -> Iterator[Case]:
    inner = path.partition(".")[2]
    dot = f"{inner}." if inner else ""
    yield from leases(path)
    yield Case(f"{path}.error", "missing", None, f"{dot}error")
    yield Case(f"{path}.error", "empty", {})
    yield from texts(f"{path}.error.type", 100)
    yield from texts(f"{path}.error.message", 1000, cut=True)
    yield Case(f"{path}.error.message", "a megabyte", "x" * 2**20)
    yield Case(f"{path}.error.retryable", "is not read", True)
    yield Case(f"{path}.non_retryable", "true", True)
    yield from durations(f"{path}.retry_delay", 0, 30 * 86400)


def releases(path: str) -> Iterator[Case]:
    yield from leases(path)
    yield from durations(f"{path}.delay", 0, 30 * 86400)


def cases() -> Iterator[Case]:
    yield Case("ClaimJobs.worker_id", "missing", "", "worker_id")
    yield from texts("ClaimJobs.worker_id", 128)
    yield Case("ClaimJobs.run_types", "missing", [], "run_types")
    yield Case("ClaimJobs.run_types", "ten", [1, 2, 3, 4, 1, 2, 3, 4, 1, 2])
    yield Case("ClaimJobs.run_types", "eleven", [1] * 11, "run_types", 10)
    for number in (0, 5, -1):
        yield Case("ClaimJobs.run_types", f"the number {number}", [1, number], "run_types[1]")
    for number in (0, 1, 100):
        yield Case("ClaimJobs.max_jobs", str(number), number)
    for number in (-1, 101, 2**31 - 1):
        yield Case("ClaimJobs.max_jobs", str(number), number, "max_jobs", 100)
    for rpc in ("ClaimJobs", "HeartbeatJobs"):
        yield from durations(f"{rpc}.lease_duration", 5, 3600)
        # The longest would be waited for.
        waits = durations(f"{rpc}.wait_timeout", 0, 60)
        yield from (case for case in waits if case.wrong or rpc == "HeartbeatJobs" or not case.value)
    yield Case("HeartbeatJobs.leases", "missing", [], "leases")
    yield Case("HeartbeatJobs.leases", "a thousand", [LEASE] * 1000)
    yield Case("HeartbeatJobs.leases", "too many", [LEASE] * 1001, "leases", 1000)
    yield from leases("HeartbeatJobs.leases[0]")
    path = "HeartbeatJobs.leases[0].progress.percent"
    for percent in (0.0, 100.0):
        yield Case(path, str(percent), percent)
    for percent in (-0.001, 100.001, float("nan"), float("inf")):
        yield Case(path, str(percent), percent, "leases[0].progress.percent", 100)
    yield from texts("HeartbeatJobs.leases[0].progress.message", 500)
    yield from structs("HeartbeatJobs.leases[0].progress.details", 4096, "INVALID_FIELD")
    yield from completions("CompleteJob")
    yield from failures("FailJob")
    yield from releases("ReleaseJob")
    yield Case("FinishJobs.items", "missing", [], "items")
    yield Case("FinishJobs.items", "a thousand", [{"release": LEASE}] * 1000)
    yield Case("FinishJobs.items", "too many", [{"release": LEASE}] * 1001, "items", 1000)
    yield Case("FinishJobs.items[0]", "nothing in it", {}, "items[0]")
    yield from completions("FinishJobs.items[0].complete")
    yield from failures("FinishJobs.items[0].fail")
    yield from releases("FinishJobs.items[0].release")


CASES = list(cases())


def request_with(path: str, value: Any) -> Any:
    """A good request in which the field at this path has this value."""
    rpc, _, inner = path.partition(".")
    request = getattr(workers_pb2, f"{rpc}Request")
    if inner == "items[0]":
        return request(items=[value])
    *outer, name = inner.split(".")
    if name in {"leases", "items"} or not outer:
        return request(**(GOOD[rpc] | {name: value}))
    first = outer[0]
    if first == "error":
        return request(**(GOOD[rpc] | {"error": {"type": "E"} | {name: value}}))
    if first == "leases[0]":
        lease: dict[str, Any] = {"progress": {name: value}} if "progress" in outer else {name: value}
        return request(leases=[LEASE | lease])
    kind = outer[1]
    item = {"complete": LEASE, "fail": GOOD["FailJob"], "release": LEASE}[kind]
    changed = {"error": {"type": "E"} | {name: value}} if outer[-1] == "error" else {name: value}
    return request(items=[{kind: item | changed}])


@pytest.fixture(scope="module")
def worker(module_world: World) -> WorkerClient:
    return module_world.worker()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_value_of_a_field_is_taken_or_refused(
    worker: WorkerClient, module_world: World, case: Case
) -> None:
    rpc = case.path.partition(".")[0]
    before = module_world.counts()
    request = request_with(case.path, case.value)
    if case.wrong is not None:
        with refused("INVALID_ARGUMENT", case.reason) as refusal:
            worker.work(rpc, request)
        assert list(refusal.it.violations) == [case.wrong]
        if case.limit is not None:
            assert refusal.it.metadata == {"field": case.wrong, "limit": str(case.limit)}
    elif rpc in {"ClaimJobs", "HeartbeatJobs", "FinishJobs"}:
        assert worker.work(rpc, request) is not None
    else:
        with refused("NOT_FOUND", "JOB_NOT_FOUND"):
            worker.work(rpc, request)
    assert module_world.counts() == before


def fields_of(path: str, message: Descriptor) -> Iterator[str]:
    """Every field below, as the cases write them; a Struct and a Duration are values."""
    for each in message.fields:
        here = f"{path}.{each.name}"
        inner = each.message_type
        if inner is None or not inner.full_name.startswith("jobs.v1."):
            yield here
        else:
            yield from fields_of(f"{here}[0]" if each.is_repeated else here, inner)


def test_every_field_of_every_request_has_a_case() -> None:
    fields = {path for method in SERVICE.methods for path in fields_of(method.name, method.input_type)}
    assert fields - {case.path for case in CASES} == set()


@pytest.mark.parametrize("rpc", GOOD)
def test_a_request_that_is_good_otherwise_is_good(rpc: str) -> None:
    assert {method.name for method in SERVICE.methods} == set(GOOD)
    assert getattr(workers_pb2, f"{rpc}Request")(**GOOD[rpc]).IsInitialized()


@pytest.mark.parametrize(
    ("rpc", "wrong"),
    [
        ("ClaimJobs", ["worker_id", "run_types"]),
        ("HeartbeatJobs", ["leases"]),
        ("CompleteJob", ["job_id", "lease_token"]),
        ("FailJob", ["job_id", "lease_token", "error"]),
        ("ReleaseJob", ["job_id", "lease_token"]),
        ("FinishJobs", ["items"]),
    ],
)
def test_an_empty_request_names_all_that_is_missing(worker: WorkerClient, rpc: str, wrong: list[str]) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        worker.work(rpc, getattr(workers_pb2, f"{rpc}Request")())
    assert list(refusal.it.violations) == wrong


def test_faults_of_many_items_are_reported_together_twenty_at_most(worker: WorkerClient) -> None:
    items = [{}, {"complete": {"job_id": "x", "lease_token": "t"}}, *[{"release": {}}] * 100]
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        worker.finish(*items)
    found = list(refusal.it.violations)
    assert found[:4] == [
        "items[0]",
        "items[1].complete.job_id",
        "items[2].release.job_id",
        "items[2].release.lease_token",
    ]
    assert len(found) <= 20
